"""Coefficients of the functions of one element; plain constants, no imports.

Constant terms stand first. Fitted for this project by iterated weighted least squares.
"""

from __future__ import annotations

ERF_ABOVE = (1.12837914, 0.193525449, 0.0530991663, 3.88251566e-3, 2.84549522e-4, 1.9869575e-6)
ERF_BELOW = (1.0, 0.504840022, 0.115341908, 0.0152055793, 1.18537515e-3, 3.74211426e-5)
"""erf(x) / x as a ratio of polynomials in x * x on 0 to 4, relative error 2.5e-8."""

EXP_REST = (
    0.4999999403953552,
    0.166665181517601,
    0.041668422520160675,
    0.008369063958525658,
    0.00138138805050,
)
"""(exp(x) - 1 - x) / (x * x) up to half of log(2) on both sides; exp(x) - 1 to a relative error of 2.1e-8."""
