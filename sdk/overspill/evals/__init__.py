"""Grading of answers, used by the evaluation of the model family and by the demo."""

from overspill.evals.grade import KINDS, grade

__all__ = ["KINDS", "grade"]
