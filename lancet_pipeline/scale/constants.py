"""Constants of the cost model on one CPU thread, written by `python -m benchmarks.plan --constants`; see docs/scaling.md."""

SECONDS_A_FLOP = {
    "forward": 8.963e-12,
    "training": 6.757e-12,
    "factors": 4.055e-12,
    "scoring": 7.754e-12,
    "correction": 9.791e-12,
}
SECONDS_A_BYTE = 1.264e-10
SECONDS_A_VISIT = 0.0004206
SECONDS_A_ROW = {
    "prepared_data": 0.0001767,
    "influence_scores": 0.0,
    "pareto_pairs": 1.397e-05,
    "output_traces": 0.02033,
    "audit_bundle": 1.773e-05,
    "undesirable_outputs": 0.001446,
    "harmlessness_report": 0.001446,
    "ood_report": 0.001446,
    "utility_report": 0.001446,
}
FIXED = {
    "prepared_data": 3.083,
    "base_model": 1.6,
    "reference_models": 0.1559,
    "undesirable_outputs": 0.03075,
    "linfac_factors": 0.6295,
    "influence_scores": 1.037,
    "pareto_pairs": 0.2223,
    "corrected_model": 0.17,
    "harmlessness_report": 0.08195,
    "ood_report": 0.07619,
    "utility_report": 0.0,
    "output_traces": 0.0,
    "audit_bundle": 0.3216,
    "registered_model": 0.7291,
}
MEDIAN_ERROR = 0.11
"""Of held-out assets that took a second or more, relative."""
