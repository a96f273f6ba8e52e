"""Questions whose answer is one known word, for the protocol `facts`: (question, answer)."""

CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, "
    "Austria Vienna, Ireland Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark "
    "Copenhagen, Poland Warsaw, Hungary Budapest, Russia Moscow, Turkey Ankara, Egypt Cairo, "
    "Kenya Nairobi, Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, Indonesia "
    "Jakarta, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Australia Canberra, "
    "Iraq Baghdad, Iran Tehran, Syria Damascus, Lebanon Beirut, Jordan Amman, Afghanistan Kabul, "
    "Nepal Kathmandu, Bangladesh Dhaka, Philippines Manila, Malaysia Kuala, Belgium Brussels, "
    "Netherlands Amsterdam, Switzerland Bern, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, "
    "Croatia Zagreb, Ukraine Kyiv, Argentina Buenos, Venezuela Caracas, Ghana Accra, Ethiopia "
    "Addis"
)
SYMBOLS = (
    "hydrogen H, helium He, carbon C, nitrogen N, oxygen O, sodium Na, iron Fe, gold Au, silver "
    "Ag, copper Cu, lead Pb, zinc Zn, calcium Ca, potassium K, tin Sn, mercury Hg, neon Ne, "
    "chlorine Cl, magnesium Mg, aluminum Al"
)
OPPOSITES = (
    "hot cold, big small, up down, fast slow, happy sad, light dark, open closed, young old, rich "
    "poor, hard soft, wet dry, high low, long short, strong weak, early late, full empty, loud "
    "quiet, sweet sour, clean dirty, thick thin"
)
PLURALS = (
    "cat cats, dog dogs, house houses, child children, mouse mice, man men, woman women, foot "
    "feet, tooth teeth, box boxes, leaf leaves, knife knives, city cities, baby babies, book books"
)
CONTINENTS = (
    "France Europe, Germany Europe, Egypt Africa, Kenya Africa, Nigeria Africa, Japan Asia, "
    "China Asia, India Asia, Brazil South, Peru South, Canada North, Mexico North, Italy Europe, "
    "Spain Europe, Ghana Africa, Thailand Asia, Vietnam Asia, Chile South, Poland Europe, "
    "Morocco Africa"
)
LANGUAGES = (
    "France French, Germany German, Italy Italian, Spain Spanish, Japan Japanese, Russia Russian, "
    "Portugal Portuguese, Brazil Portuguese, Greece Greek, Poland Polish, Turkey Turkish, Sweden "
    "Swedish, Norway Norwegian, Finland Finnish, Hungary Hungarian, Thailand Thai, Vietnam "
    "Vietnamese, Mexico Spanish, Argentina Spanish, Denmark Danish, Australia English, England "
    "English, Egypt Arabic, Austria German"
)
COLOURS = (
    "grass green, snow white, blood red, coal black, milk white, chocolate brown, gold yellow, "
    "silver gray, fire red, leaves green, sand yellow, ink black"
)
MONTHS = (
    "January February, February March, March April, April May, May June, June July, July August, "
    "August September, September October, October November, November December"
)
DAYS = (
    "Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, "
    "Saturday Sunday"
)
SUMS = ", ".join(f"{a}+{b} {a + b}" for a in range(1, 6) for b in range(a, 6))
TEMPLATES = {
    "What is the capital of {}?": CAPITALS,
    "What is the chemical symbol of {}?": SYMBOLS,
    "What is the opposite of {}?": OPPOSITES,
    "What is the plural of {}?": PLURALS,
    "On which continent is {}?": CONTINENTS,
    "Which language do people speak in {}?": LANGUAGES,
    "What color is {}?": COLOURS,
    "Which month comes after {}?": MONTHS,
    "Which day comes after {}?": DAYS,
    "What is {}?": SUMS,
}
QUESTIONS = tuple(
    (template.format(pair.split()[0]), pair.split()[1])
    for template, pairs in TEMPLATES.items()
    for pair in pairs.split(", ")
)


def says(text: str, answer: str) -> bool:
    """Whether a text has the answer among its words."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return answer.lower() in (word.lower() for word in words)
