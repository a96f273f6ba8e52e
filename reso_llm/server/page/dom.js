// Elements made of names, attributes and text. Text enters the page as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child is an element or a text. */
export function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function draw(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A number with two digits behind the point, a dash where it is not known. */
export const shown = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits) : "–");

export const percent = (x) => (Number.isFinite(x) ? `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %` : "–");
