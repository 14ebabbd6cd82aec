r"""Convex problems in an L_p ball, many small ones at once, solved until KKT holds.

    min L(theta)   subject to   ||theta||_p <= R,      p in [1, 2] or infinity.

Newton's method with the ball inside it: each step minimizes the quadratic model of L *over the
ball*, so that the multiplier of the constraint is found along with theta and convergence stays
quadratic where the constraint binds. For p = 2 the model's minimizer is explicit up to one number
(its secular equation); for p = 1 and infinity the ball is a polytope and an interior-point method
finds it in some twenty small linear solves; for p in between, reweighted least squares.

Where pairs leave a direction open (a response that no pair drew), the minimizers are many. Taken
is the one nearest to the start: what no pair speaks of stays as it was. Left to the solver's
rounding it would differ between processors, and all that is sampled afterwards with it.

The trap: on separable data the unconstrained likelihood has no minimizer at all. Only the ball
makes the estimator of 2601.08421 (Proposition 3.1) exist there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def minimize_in_ball(
    derivatives: Derivatives,
    start: Tensor,
    radius: float,
    norm: float,
    tolerance: float = 1e-7,
    max_steps: int = 100,
) -> Tensor:
    """Minimize a batch of smooth convex functions over the ball.

    Args:
        derivatives: (theta, which) -> value (batch,), gradient (batch, d), Hessian (batch, d, d) of
            the problems number `which`, int64.
        start: shape (problems, d); put into the ball first.
        radius: R.
        norm: p.
        tolerance: Newton step s at which a problem is finished (after taking it: convergence is
            quadratic), measured by (s' H s / largest eigenvalue of H)^1/2 relative to 1 + R, so
            that directions that do not matter do not count.
        max_steps: Newton steps before giving up.

    Returns:
        The minimizers, shape (problems, d). Directions without curvature keep the start's value, or
        as much of it as the ball has room for.

    Raises:
        ArithmeticError: not solved to the tolerance.
    """
    theta = project(start, radius, norm)
    origin, which = theta.clone(), torch.arange(len(theta))
    for _ in range(max_steps):
        here = theta[which]
        value, gradient, hessian = derivatives(here, which)
        model = _minimize_model(here, gradient, hessian, origin[which], radius, norm)
        step = model - here
        slope = (gradient * step).sum(1)
        size = torch.ones_like(value)
        # Rounding of the value is all that is left of a slope this small: take the step.
        negligible = slope.abs() <= 1e-14 * (1 + value.abs())
        for _ in range(40):
            new = derivatives(here + size[:, None] * step, which)[0]
            enough = (new <= value + 1e-4 * size * slope) | negligible
            if bool(enough.all()):
                break
            size = torch.where(enough, size, size / 2)
        theta[which] = here + size[:, None] * step
        curvature = torch.einsum("bi,bij,bj->b", step, hessian, step)
        largest = hessian.diagonal(dim1=1, dim2=2).amax(1) * (1 + radius) ** 2
        # Along the ball's faces the slope does not vanish, and rounding leaves this much of it.
        rounding = 1e-11 * gradient.abs().sum(1) * (1 + radius)
        # A small step that does not descend is the model's own rounding: no better can be had.
        exhausted = (slope >= 0) & (curvature <= 1e-10 * largest)
        bent = (curvature > tolerance**2 * largest) & ~exhausted
        which = which[bent | (-slope > torch.maximum(rounding, tolerance**2 * largest))]
        if not len(which):
            assert bool(torch.isfinite(theta).all())
            return theta if norm == 2 else _nearest(theta, origin, derivatives, radius, norm)
    raise ArithmeticError(
        f"{len(which)} of {len(theta)} problems unsolved after {max_steps} Newton steps"
    )


def kkt_residual(
    theta: Tensor, gradient: Tensor, curvature: Tensor, radius: float, norm: float
) -> Tensor:
    """||theta - P(theta - gradient / curvature)||, 0 exactly where KKT holds; shape (problems,).

    P projects onto the ball; `curvature`, shape (problems,), is the Hessian's largest eigenvalue.
    """
    moved = theta - gradient / curvature[:, None]
    return (theta - project(moved, radius, norm)).norm(dim=1)


def project(point: Tensor, radius: float, norm: float) -> Tensor:
    """The nearest point of the L_p ball, rowwise; shape (problems, d)."""
    if norm == float("inf"):
        return point.clamp(-radius, radius)
    if norm == 2:
        length = point.norm(dim=1, keepdim=True)
        return point * (radius / length.clamp_min(radius))
    outside = point.abs().pow(norm).sum(1, keepdim=True) > radius**norm
    if norm == 1:
        ordered = point.abs().sort(dim=1, descending=True).values
        excess = ordered.cumsum(1) - radius
        counts = torch.arange(1, point.shape[1] + 1, dtype=point.dtype)
        kept = (ordered * counts > excess).sum(1, keepdim=True).clamp_min(1)
        shift = excess.gather(1, kept - 1) / kept
        shrunk = point.sign() * (point.abs() - shift).clamp_min(0)
    else:
        shrunk = point.sign() * _shrink(point.abs(), radius, norm)
    return torch.where(outside, shrunk, point)


def _shrink(size: Tensor, radius: float, norm: float) -> Tensor:
    """x >= 0 with x + nu p x^(p-1) = size and ||x||_p = R, for 1 < p < 2, by bisection twice."""
    low = torch.zeros_like(size[:, :1])
    high = size.amax(1, keepdim=True) * (1 + size.shape[1] / radius) ** 2 + 1
    for _ in range(80):
        middle = (low + high) / 2
        a, b = torch.zeros_like(size), size.clone()
        for _ in range(60):
            x = (a + b) / 2
            above = x + middle * norm * x.pow(norm - 1) > size
            a, b = torch.where(above, a, x), torch.where(above, x, b)
        long = b.pow(norm).sum(1, keepdim=True) > radius**norm
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    return a


def _minimize_model(
    here: Tensor, gradient: Tensor, hessian: Tensor, origin: Tensor, radius: float, norm: float
) -> Tensor:
    """argmin over z in the ball of g.(z - here) + (z - here)' H (z - here) / 2.

    Of many minimizers, the one nearest to `origin` (p = 2, and wherever the ball does not bind).
    """
    values, vectors, flat = _spectrum(hessian)  # no curvature: stay where it began
    slope = (vectors.transpose(1, 2) @ gradient[:, :, None])[:, :, 0]
    start = (vectors.transpose(1, 2) @ here[:, :, None])[:, :, 0]
    began = (vectors.transpose(1, 2) @ origin[:, :, None])[:, :, 0]
    newton = torch.where(flat, began, start - slope / torch.where(flat, 1.0, values))
    free = (vectors @ newton[:, :, None])[:, :, 0]
    outside = torch.linalg.vector_norm(free, norm, dim=1) > radius * (1 + 1e-12)
    if not bool(outside.any()):
        return free
    result = free.clone()
    o = outside
    if norm == 2:
        middle = _in_sphere(values[o], newton[o], flat[o], radius)
        result[o] = (vectors[o] @ middle[:, :, None])[:, :, 0]
        return result
    linear = (hessian[o] @ here[o][:, :, None])[:, :, 0] - gradient[o]
    if norm in (1, float("inf")):
        result[o] = _in_polytope(hessian[o], linear, radius, norm)
    else:
        result[o] = _reweighted(hessian[o], linear, here[o], radius, norm)
    return result


def _spectrum(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, eigenvectors, and which are 0 but for rounding."""
    values, vectors = torch.linalg.eigh(hessian)
    values = values.clamp_min(0)
    return values, vectors, values <= 1e-13 * values[:, -1:].clamp_min(1e-300)


def _nearest(
    theta: Tensor, origin: Tensor, derivatives: Derivatives, radius: float, norm: float
) -> Tensor:
    """Of the minimizers, theta + directions without curvature, the one nearest to `origin`.

    Dykstra's projections onto that plane and the ball in turn, from `origin` on; where the plane's
    own nearest point lies in the ball, it is the first.
    """
    _, vectors, flat = _spectrum(derivatives(theta, torch.arange(len(theta)))[2])
    open_ = vectors * flat[:, None]
    onto = open_ @ open_.transpose(1, 2)

    def in_plane(point: Tensor) -> Tensor:
        return theta + (onto @ (point - theta)[:, :, None])[:, :, 0]

    point, surplus = in_plane(origin), torch.zeros_like(theta)
    for _ in range(2000):
        inside = project(point + surplus, radius, norm)
        surplus = point + surplus - inside
        moved = in_plane(inside)
        change = float((moved - point).abs().max())
        point = moved
        if change <= 1e-13 * (1 + radius):
            break
    return project(point, radius, norm)


def _in_sphere(values: Tensor, newton: Tensor, flat: Tensor, radius: float) -> Tensor:
    """The same for p = 2, in the eigenbasis: the flat part takes the room that the rest leaves."""
    curved = torch.where(flat, 0.0, newton)
    binds = curved.norm(dim=1) > radius
    if bool(binds.any()):
        kept = torch.where(flat, 1.0, values)[binds]
        curved[binds] = _secular(kept, kept * curved[binds], radius)
    room = (radius**2 - curved.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    room = torch.where(binds[:, None], 0.0, room)
    beside = torch.where(flat, newton, 0.0)
    length = beside.norm(dim=1, keepdim=True)
    return curved + beside * (room / length.clamp_min(1e-300)).clamp_max(1)


def _secular(values: Tensor, linear: Tensor, radius: float) -> Tensor:
    """z_i = linear_i / (values_i + mu), with mu > 0 such that ||z|| = R, in the eigenbasis."""
    low = torch.zeros_like(linear[:, :1])
    high = linear.norm(dim=1, keepdim=True).clamp_min(1e-300) / radius
    for _ in range(200):
        mu = (low + high) / 2
        long = (linear / (values + mu)).norm(dim=1, keepdim=True) > radius
        low, high = torch.where(long, mu, low), torch.where(long, high, mu)
        if bool((high - low <= 4e-16 * high).all()):
            break
    return linear / (values + high)


def _in_polytope(hessian: Tensor, linear: Tensor, radius: float, norm: float) -> Tensor:
    """argmin of z' H z / 2 - linear.z over the ball of L_1 or L_infinity: an interior point method.

    z = w itself in a box, or z = u - v with u, v >= 0 and sum(u) + sum(v) <= R. Newton steps on the
    perturbed KKT conditions H w - linear + G' m = 0, m (h - G w) = mu, with mu falling to 0.
    """
    d = linear.shape[1]
    eye = torch.eye(d, dtype=linear.dtype)
    if norm == 1:
        split = torch.cat([eye, -eye], dim=1)
        g = torch.cat([-torch.eye(2 * d, dtype=linear.dtype), torch.ones(1, 2 * d).to(linear)])
        h = torch.cat([torch.zeros(2 * d), torch.tensor([radius])]).to(linear)
        w = torch.full((len(linear), 2 * d), radius / (4 * d)).to(linear)
    else:
        split, g = eye, torch.cat([eye, -eye])
        h = torch.full((2 * d,), radius).to(linear)
        w = torch.zeros_like(linear)
    scale = (linear.abs().amax(1) + radius * hessian.abs().amax((1, 2))).clamp_min(1e-300)
    quadratic = split.T @ (hessian / scale[:, None, None]) @ split
    cost = -(linear / scale[:, None]) @ split
    slack = h - w @ g.T
    multiplier = 0.1 / slack
    for _ in range(60):
        mu = (multiplier * slack).mean(1, keepdim=True)
        residual = (quadratic @ w[:, :, None])[:, :, 0] + cost + multiplier @ g
        done = (mu < 1e-14 * radius) & (residual.abs().amax(1, keepdim=True) < 1e-11)
        if bool(done.all()):
            break
        ratio = multiplier / slack
        system = _bordered(quadratic, ratio, norm)
        # dm = (target + m G dw) / s - m, put into the stationarity condition.
        target = (0.1 * mu).clamp_min(5e-15 * radius)
        right = -(residual + (target / slack - multiplier) @ g)
        padded = torch.nn.functional.pad(right, (0, system.shape[1] - right.shape[1]))
        step = torch.linalg.solve(system, padded)[:, : right.shape[1]]
        step = torch.where(done, 0.0, step)
        change = step @ g.T
        rise = target / slack - multiplier + ratio * change
        size = torch.where(done, 0.0, 1.0).to(w)
        for value, fall in ((slack, change), (multiplier, -rise)):
            allowed = torch.where(fall > 0, value / fall.clamp_min(1e-300), torch.inf)
            size = torch.minimum(size, 0.995 * allowed.amin(1, keepdim=True))
        w, multiplier = w + size * step, (multiplier + size * rise).clamp_min(1e-20)
        slack = (slack - size * change).clamp_min(1e-16 * radius)
    return w @ split.T


def _bordered(quadratic: Tensor, ratio: Tensor, norm: float) -> Tensor:
    """H + G' diag(ratio) G as a matrix that solves well: bounds on the diagonal, the sum a border.

    Close to the solution the ratios span twenty orders of magnitude. Bounds do not mix coordinates,
    so that pivoting copes with them; the constraint on the sum does, and would drown all else.
    """
    n = quadratic.shape[1]
    if norm != 1:
        return quadratic + torch.diag_embed(ratio[:, :n] + ratio[:, n:] + 1e-13)
    system = torch.nn.functional.pad(quadratic, (0, 1, 0, 1))
    system = system + torch.diag_embed(torch.cat([ratio[:, :n] + 1e-13, -1 / ratio[:, n:]], dim=1))
    system[:, :n, n] = system[:, n, :n] = 1.0
    return system


def _reweighted(hessian: Tensor, linear: Tensor, start: Tensor, radius: float, p: float) -> Tensor:
    """argmin of z' H z / 2 - linear.z over the L_p ball, 1 < p < 2: H z + mu p |z|^(p-1) = linear.

    The multiplier mu by bisection; for each, |z|^p is majorized by |old|^(p-2) z^2 p / 2, which
    contracts by 2 - p a step.
    """
    low = torch.zeros_like(linear[:, :1])
    high = linear.abs().sum(1, keepdim=True) / (p * radius ** (p - 1))
    z = torch.where(start == 0, radius / start.shape[1], start)
    for _ in range(60):
        mu = (low + high) / 2
        for _ in range(60):
            weights = mu * p * z.abs().clamp_min(1e-14).pow(p - 2)
            z = torch.linalg.solve(hessian + torch.diag_embed(weights), linear)
        long = torch.linalg.vector_norm(z, p, dim=1, keepdim=True) > radius
        low, high = torch.where(long, mu, low), torch.where(long, high, mu)
    return z * (radius / torch.linalg.vector_norm(z, p, dim=1, keepdim=True)).clamp_max(1)
