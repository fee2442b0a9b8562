"""Constants of the cost model on one CPU thread, written by `python -m benchmarks.plan --constants`; see docs/scaling.md."""

SECONDS_A_FLOP = {
    "forward": 5.705e-12,
    "training": 6.578e-12,
    "factors": 6.522e-12,
    "scoring": 9.865e-12,
    "correction": 1.033e-11,
}
SECONDS_A_BYTE = 2.712e-10
SECONDS_A_VISIT = 0.0003922
SECONDS_A_ROW = {
    "prepared_data": 0.0001306,
    "influence_scores": 0.0,
    "pareto_pairs": 3.395e-05,
    "output_traces": 0.008118,
    "audit_bundle": 3.094e-05,
    "undesirable_outputs": 0.0008067,
    "harmlessness_report": 0.0008067,
    "ood_report": 0.0008067,
    "utility_report": 0.0008067,
}
FIXED = {
    "prepared_data": 3.017,
    "base_model": 1.487,
    "reference_models": 0.0,
    "undesirable_outputs": 0.01669,
    "linfac_factors": 0.3035,
    "influence_scores": 0.6269,
    "pareto_pairs": 0.1367,
    "corrected_model": 0.04218,
    "harmlessness_report": 0.0261,
    "ood_report": 0.03038,
    "utility_report": 0.0,
    "output_traces": 0.0,
    "audit_bundle": 0.1889,
    "registered_model": 0.6713,
}
MEDIAN_ERROR = 0.11
"""Of held-out assets that took a second or more, relative."""
