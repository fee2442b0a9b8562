"""What an experiment shows where nothing was measured, or nothing was there to move."""

from lancet_pipeline.evaluation.figures import main_figures
from lancet_pipeline.lineage.experiment_results import FIGURES, _figures
from lancet_pipeline.plots import sensitivity

LINEAGE = {
    "influence_scores": {"metrics": {"samples": 9.0}, "seconds": 1.0},
    "linfac_factors": {"seconds": 1.0},
}


def model(slope: float, bias: float) -> dict:
    figures = {figure.name: {"value": 0.5} if figure.rate else 0.5 for figure in main_figures()}
    return figures | {"condition": {"slope": slope, "bias": bias}}


def test_a_condition_moves_by_its_share_of_what_clean_training_moves_it():
    models = {"base": model(1.0, 0.25), "corrected": model(0.5, 0.5), "retrain_clean": model(-1.0, 0.25)}
    found = _figures(models, LINEAGE)
    assert (found["slope_moved"], found["bias_off"]) == (0.25, 0.25)
    assert found["ood_slope_moved"] is None


def test_no_share_is_known_where_clean_training_moves_no_condition():
    models = {name: model(1.0, 0.0) for name in ("base", "corrected", "retrain_clean")}
    found = _figures(models, LINEAGE)
    assert (found["slope_moved"], found["bias_off"]) == (None, 0.0)


def test_a_factor_of_which_every_variant_failed_has_an_empty_plot():
    values = [{"value": 1, "own": True, "figures": dict.fromkeys(FIGURES)}]
    assert sensitivity("seed", values, FIGURES, {}).startswith(b"\x89PNG")
