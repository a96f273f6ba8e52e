"""Kuramoto oscillators with all-to-all coupling.

    dθ_i/dt = ω_i + (K/N) Σ_j sin(θ_j - θ_i) = ω_i + K r sin(ψ - θ_i),   r e^{iψ} = mean_j e^{iθ_j}

Source: Kuramoto 1975; Strogatz, Physica D 143 (2000). The difference is θ_j - θ_i, so K > 0 pulls
phases together. The mean-field form on the right costs O(N) instead of O(N²).

Shapes: phases theta and natural frequencies omega are (..., N), in radians and radians per unit
time; the coupling K is a number or (...), one per row. Phases are not wrapped, so a derivative
passes through them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def order_parameter(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Coherence r in [0, 1] and mean phase psi in (-pi, pi]: (..., N) -> (...), (...).

    psi is meaningless (and its gradient is not finite) where r = 0.
    """
    x, y = theta.cos().mean(-1), theta.sin().mean(-1)
    return torch.hypot(x, y), torch.atan2(y, x)


def phase_velocity(theta: Tensor, omega: Tensor, coupling: Tensor | float) -> Tensor:
    """dθ/dt in the mean-field form: (..., N) -> (..., N).

    Written as ω + K (Y cos θ - X sin θ) with X + iY = r e^{iψ}: no square root or angle, so it is
    smooth at r = 0.
    """
    K = torch.as_tensor(coupling, dtype=theta.dtype, device=theta.device).unsqueeze(-1)
    cos, sin = theta.cos(), theta.sin()
    return omega + K * (sin.mean(-1, keepdim=True) * cos - cos.mean(-1, keepdim=True) * sin)


def euler_step(theta: Tensor, omega: Tensor, coupling: Tensor | float, dt: float) -> Tensor:
    """One explicit Euler step, global error O(dt): (..., N) -> (..., N)."""
    return theta + dt * phase_velocity(theta, omega, coupling)


def rk4_step(theta: Tensor, omega: Tensor, coupling: Tensor | float, dt: float) -> Tensor:
    """One classical Runge–Kutta step, global error O(dt⁴): (..., N) -> (..., N)."""
    k1 = phase_velocity(theta, omega, coupling)
    k2 = phase_velocity(theta + dt / 2 * k1, omega, coupling)
    k3 = phase_velocity(theta + dt / 2 * k2, omega, coupling)
    k4 = phase_velocity(theta + dt * k3, omega, coupling)
    return theta + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def noisy_step(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor | float,
    dt: float,
    *,
    diffusion: float,
    generator: torch.Generator,
) -> Tensor:
    """One Euler–Maruyama step of dθ = (dθ/dt) dt + sqrt(2 D) dW: (..., N) -> (..., N).

    diffusion is D in radians² per unit time. Raises ValueError when it is negative.
    """
    if not diffusion >= 0:
        raise ValueError(f"diffusion must not be negative, got {diffusion}")
    noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
    return euler_step(theta, omega, coupling, dt) + (2 * diffusion * dt) ** 0.5 * noise


def simulate(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor | float,
    *,
    dt: float,
    num_steps: int,
    step: Callable[[Tensor, Tensor, Tensor | float, float], Tensor] = rk4_step,
) -> tuple[Tensor, Tensor]:
    """num_steps of `step`: theta (..., N) -> final theta (..., N), r after each step (..., T).

    For noise pass ``functools.partial(noisy_step, diffusion=D, generator=g)`` as the step.
    Raises ValueError when num_steps < 1 or dt is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    coherences = []
    for _ in range(num_steps):
        theta = step(theta, omega, coupling, dt)
        coherences.append(order_parameter(theta)[0])
    return theta, torch.stack(coherences, dim=-1)
