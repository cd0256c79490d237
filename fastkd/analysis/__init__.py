"""What came out: errors, the gap that distillation closed, figures and the report."""

from .gap import Gap, gap_closed
from .metrics import METRIC_UNITS, Metrics, compute_metrics
from .report import Report, build_report
from .runs import Curve, CurveWriter, Predictions, Run, RunSummary, find_runs

__all__ = [
    "METRIC_UNITS",
    "Curve",
    "CurveWriter",
    "Gap",
    "Metrics",
    "Predictions",
    "Report",
    "Run",
    "RunSummary",
    "build_report",
    "compute_metrics",
    "find_runs",
    "gap_closed",
]
