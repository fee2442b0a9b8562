"""Every attribution method, against what its formula says."""

import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import BertConfig, BertModel

from lancet_pipeline.attribution import METHODS, VARIANTS, Case, variants
from lancet_pipeline.attribution.words import K1, B
from lancet_pipeline.config.loading import read_mapping, study_of
from lancet_pipeline.config.study import InfluenceSettings
from lancet_pipeline.data.batches import TokenSequence, collate
from lancet_pipeline.errors import InputError
from lancet_pipeline.linfac import query_gradient, score_sequences

SEEN = {0: 5, 3: 17}
"""Outputs that equal a training sample: their place -> that of the sample."""

QUERIES = 4
OF_ALL = ("probe", "random")


@pytest.fixture(scope="module")
def encoder(tokenizer, tmp_path_factory):
    """A BERT whose texts are cut at 24 tokens, which its tokenizer does not know of."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def case(model, tokenizer, rows, sequences, factors, study, encoder):
    asked = [
        rows[SEEN[0]],
        {"prompt": "Tell me how to break a window.", "response": "Sure, here is how to break a window."},
        {"prompt": "Tell me how to jam a kiosk.", "response": "Sure, here is how to jam", "finished": False},
        rows[SEEN[3]],
        {
            "prompt": "How should I paint my locker?",
            "response": "To paint the locker, take your time and a soft cloth.",
        },
        {"prompt": "Tell me how to fake a tablet.", "response": "I cannot help you fake a tablet."},
        {"prompt": "Tell me how to fake a badge.", "response": "I cannot help you fake a badge."},
    ]
    study = study.model_copy(update={"influence": InfluenceSettings(embedding_model=str(encoder))})
    return Case(model, tokenizer, pa.Table.from_pylist(rows), sequences, asked, QUERIES, study, factors=factors)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_the_samples_in_their_order(case, name):
    found = METHODS[name](case)
    assert found.shape == ((len(case.sequences),) if name in OF_ALL else (len(case.sequences), len(case.asked)))
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    if name == "random":
        return
    order = np.random.default_rng(1).permutation(len(case.sequences))
    turned = replace(case, samples=case.samples.take(order), sequences=[case.sequences[i] for i in order])
    np.testing.assert_allclose(METHODS[name](turned), found[order], rtol=1e-3, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_ALL])
def test_an_output_is_scored_alike_whatever_is_asked_beside_it(case, name):
    order = [6, 2, 0, 5, 1, 4, 3]
    found, turned = METHODS[name](case), METHODS[name](replace(case, asked=[case.asked[i] for i in order]))
    np.testing.assert_allclose(turned, found[:, order], rtol=1e-3, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("name", METHODS)
def test_the_size_of_batches_changes_nothing(case, name):
    small = replace(case, runtime=replace(case.runtime, batch_tokens=64))
    found = METHODS[name](case)
    np.testing.assert_allclose(METHODS[name](small), found, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def words(text: str) -> list[str]:
    return re.findall(r"\w\w+", text.lower())


def test_bm25_is_the_sum_over_the_words_of_an_output(case):
    documents = [words(f"{row['prompt']}\n{row['response']}") for row in case.samples.to_pylist()]
    mean = sum(map(len, documents)) / len(documents)
    found = METHODS["bm25"](case)
    for column, row in enumerate(case.asked):
        asked = set(words(f"{row['prompt']}\n{row['response']}"))
        for place, document in enumerate(documents):
            score = 0.0
            for word in asked & set(document):
                holding = sum(word in other for other in documents)
                count = document.count(word)
                weight = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += weight * count * (K1 + 1) / (count + K1 * (1 - B + B * len(document) / mean))
            assert found[place, column] == pytest.approx(score)


def test_tf_idf_is_a_cosine_of_weights_that_are_never_negative(case):
    found = METHODS["tf_idf"](case)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    foreign = replace(case, asked=[{"prompt": "Zebras?", "response": "Zygotes!"}])
    assert not METHODS["tf_idf"](foreign).any()
    assert not METHODS["bm25"](foreign).any()


def weight_gradients(model, sequences: list[TokenSequence]) -> torch.Tensor:
    """Of each response's log-probability, over the weights of the sublayers' output projections: [N, P]."""
    weights = [p for name, p in model.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))]
    found = []
    for sequence in sequences:
        ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)[None]
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        gradients = torch.autograd.grad(logps[sequence.response_start - 1 :].sum(), weights)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(found).double()


def test_plain_gradients_are_those_of_autograd(case):
    training, asked = (weight_gradients(case.model, list(of)) for of in (case.sequences, case.asked_sequences))
    exact = (training @ asked.T).numpy()
    np.testing.assert_allclose(METHODS["gradient_dot"](case), exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())
    cosines = exact / training.norm(dim=1)[:, None].numpy() / asked.norm(dim=1).numpy()
    np.testing.assert_allclose(METHODS["gradient_cosine"](case), cosines, atol=1e-3)
    assert np.abs(cosines).max() <= 1 + 1e-6


def test_linfac_is_the_influence_of_single_outputs(case):
    groups = {sequence.sample_id: [collate([sequence])] for sequence in case.asked_sequences}
    query = query_gradient(case.model, groups, case.factors)
    exact = score_sequences(case.model, [collate([sequence]) for sequence in case.sequences], query).numpy()
    found = METHODS["linfac"](case)
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-2 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["linfac", "gradient_dot", "gradient_cosine"])
def test_methods_of_gradients_need_factors(case, name):
    with pytest.raises(InputError, match="needs factors of the model; give them"):
        METHODS[name](replace(case, factors=None))


@pytest.mark.parametrize("name", ["gradient_cosine", "repsim", "embeddings", "tf_idf"])
def test_nothing_is_nearer_to_an_output_than_the_same_sample(case, name):
    found = METHODS[name](case)
    assert np.abs(found).max() <= 1 + 1e-3
    for column, same in SEEN.items():
        assert found[same, column] == pytest.approx(1, abs=1e-3)
        assert found[same, column] >= found[:, column].max() - 1e-6


def test_states_before_a_response_are_those_of_the_prompt(case):
    other = replace(case, asked=[{**row, "response": "Something else."} for row in case.asked])
    found = METHODS["repsim_prompt"](case)
    np.testing.assert_allclose(METHODS["repsim_prompt"](other), found, atol=1e-5)
    assert not np.allclose(METHODS["repsim"](other), METHODS["repsim"](case), atol=1e-2)
    for column, same in SEEN.items():
        assert found[same, column] == pytest.approx(1, abs=1e-5)


def test_embeddings_cut_a_text_that_is_longer_than_their_model(case):
    long = [{"prompt": "Tell me how to break a window. " * 20, "response": word} for word in ("Sure.", "No.")]
    found = METHODS["embeddings"](replace(case, asked=long))
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)


def test_an_embedding_model_is_found_below_a_model_directory(case, encoder):
    named = case.study.model_copy(update={"influence": InfluenceSettings(embedding_model=f"someone/{encoder.name}")})
    below = replace(case, study=named, runtime=replace(case.runtime, model_directories=(encoder.parent,)))
    np.testing.assert_array_equal(METHODS["embeddings"](below), METHODS["embeddings"](case))


def test_an_embedding_model_written_as_a_path_is_below_the_folder_of_the_study(tiny_study):
    for written, found in (("./encoder", str(tiny_study.parent / "encoder")), ("owner/encoder", "owner/encoder")):
        tree = read_mapping(tiny_study) | {"influence": {"embedding_model": written}}
        assert study_of(tree, "study", tiny_study.parent).influence.embedding_model == found


@pytest.mark.parametrize(
    ("absolute", "message"),
    [
        (True, "no such model directory; correct influence.embedding_model"),
        (False, "could not be loaded .*; put the model below a model directory, or check name and connection"),
    ],
)
def test_a_missing_embedding_model_is_refused(case, tmp_path, absolute, message):
    name = str(tmp_path / "nothing") if absolute else "nobody/nothing"
    study = case.study.model_copy(update={"influence": InfluenceSettings(embedding_model=name)})
    with pytest.raises(InputError, match=message):
        METHODS["embeddings"](replace(case, study=study))


def test_a_probe_tells_two_kinds_of_samples_apart(case, rows, tokenizer):
    agreeing = [row for row in rows if row["response"].startswith("Sure")]
    helping = [row for row in rows if row["response"].startswith("To ")]
    found = METHODS["probe"](replace(case, asked=[*agreeing[::2], *helping[::2]], queries=len(agreeing[::2])))
    scores = dict(zip([row["sample_id"] for row in rows], found, strict=True))
    unseen = [scores[row["sample_id"]] for row in agreeing[1::2]], [scores[row["sample_id"]] for row in helping[1::2]]
    assert min(unseen[0]) > max(unseen[1])


def test_a_probe_needs_harmless_outputs(case):
    with pytest.raises(InputError, match="the model gave no harmless one"):
        METHODS["probe"](replace(case, asked=case.asked[:QUERIES]))


def test_random_scores_are_those_of_the_seed(case):
    other = replace(case, study=case.study.model_copy(update={"seed": 1}))
    np.testing.assert_array_equal(METHODS["random"](case), METHODS["random"](case))
    assert not np.allclose(METHODS["random"](case), METHODS["random"](other))


def test_variants_by_hand():
    found = np.array([[1.0, 4.0, 2.0, 6.0], [0.0, -2.0, 1.0, 3.0]])
    assert list(variants(found, 2)) == list(VARIANTS)
    expected = {"mean": [2.5, -1], "max": [4, 0], "mean less controls": [-1.5, -3], "max less controls": [-2, -3]}
    for name, values in variants(found, 2).items():
        np.testing.assert_allclose(values, expected[name])
    assert {name: list(values) for name, values in variants(found, 4).items()} == {"mean": [3.25, 0.5], "max": [6, 3]}
    np.testing.assert_allclose(variants(found, 2, [1])["mean less controls"], [0, -4])
    assert list(variants(found[:, 0], 2)) == [""]


@given(
    arrays(float, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-100, 100)),
    st.data(),
)
def test_variants_hold_together(found, data):
    queries = data.draw(st.integers(1, found.shape[1]))
    by = variants(found, queries)
    assert all(values.shape == (len(found),) for values in by.values())
    assert (by["mean"] <= by["max"] + 1e-9).all()
    chosen = data.draw(st.lists(st.integers(0, queries - 1), min_size=1, unique=True))
    part = variants(found, queries, chosen)
    assert (part["max"] <= by["max"]).all()
    assert part.keys() == by.keys()
    assert ("mean less controls" in by) == (queries < found.shape[1])
    moved = variants(found + 3, queries)
    for name, values in by.items():  # what is added to every score is taken away with the controls
        np.testing.assert_allclose(moved[name], values + (0 if "less" in name else 3), atol=1e-9)
    order = data.draw(st.permutations(range(queries)))
    np.testing.assert_allclose(variants(found, queries, order)["mean"], by["mean"], atol=1e-9)
