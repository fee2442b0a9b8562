from lancet_pipeline.governance.excerpts import attribute


def shaded(pieces) -> list[tuple[str, float]]:
    return [(piece.text, piece.share) for piece in pieces if piece.share is not None]


def test_whole_response_in_order_is_shaded_token_by_token() -> None:
    tokens = [{"token": t, "share": s} for t, s in ((" You", 1.0), (" are", 0.5), (" you", -2.0))]
    found = attribute("Who?", "You are you", tokens)
    assert shaded(found.response) == [("You", 1.0), (" are", 0.5), (" you", -2.0)]
    assert [piece.level for piece in found.response] == [2, 1, 4]
    assert shaded(found.prompt) == []


def test_pieces_put_together_are_the_text() -> None:
    tokens = [{"token": " the", "share": 1.0, "position": 9}, {"token": " cat", "share": 0.2, "position": 10}]
    found = attribute("Tell me of the dog.", "See the cat.", tokens)
    assert "".join(piece.text for piece in found.prompt) == "Tell me of the dog."
    assert "".join(piece.text for piece in found.response) == "See the cat."
    assert shaded(found.response) == [(" the", 1.0), (" cat", 0.2)]


def test_token_that_occurs_twice_is_listed_but_not_shaded() -> None:
    found = attribute("the dog", "the cat", [{"token": "the", "share": 1.0, "position": 3}])
    assert shaded(found.prompt + found.response) == []
    assert found.strongest == [("the", 1.0)]


def test_run_with_a_special_token_places_what_it_can() -> None:
    tokens = [{"token": t, "share": 1.0} for t in ("<s>", "Good", " day", "</s>")]
    assert "".join(text for text, _ in shaded(attribute("Hm", "Good day", tokens).response)) == "Good day"


def test_tokens_of_the_prompt_are_shaded_there() -> None:
    found = attribute("I broke it", "Oh dear", [{"token": " broke", "share": -0.5, "position": 1}])
    assert shaded(found.prompt) == [(" broke", -0.5)]


def test_no_tokens_and_zero_shares_are_plain() -> None:
    assert [piece.text for piece in attribute("a", "b", []).response] == ["b"]
    assert attribute("a", "b", [{"token": "b", "share": 0.0}]).response[0].level == 1


def test_word_at_the_start_counts_as_an_occurrence() -> None:
    found = attribute("Hm", "the cat and the dog", [{"token": " the", "share": 1.0, "position": 4}])
    assert shaded(found.response) == []
