SECONDS_A_FLOP = {"forward": 2e-11, "training": 2e-11, "factors": 2e-11, "scoring": 2e-11, "correction": 2e-11}
SECONDS_A_BYTE = 1e-10
SECONDS_A_VISIT = 2e-4
SECONDS_A_ROW = {}
FIXED = dict.fromkeys(
    (
        "prepared_data",
        "base_model",
        "reference_models",
        "undesirable_outputs",
        "linfac_factors",
        "influence_scores",
        "pareto_pairs",
        "corrected_model",
        "harmlessness_report",
        "ood_report",
        "utility_report",
        "output_traces",
        "audit_bundle",
        "registered_model",
    ),
    0.1,
)
MEDIAN_ERROR = 0.2
