"""Rows of texts through a chain: columns for themselves, provenance that tells the way, counts that add up."""

from __future__ import annotations

from collections.abc import Sequence

from mvc.augment_rows import Outcome, TextRow, Totals, augment_rows
from mvc.modality.chain import Chain
from mvc.modality.nodes import Filter, Level
from mvc.modality.steps import Item, Output, Refused, Result, Step, one_each
from mvc.modality.store import Store


def numbered(name: str, **settings: object) -> Step:
    """A step that writes its name and whether its seed is even behind a text; it cannot do "bad"."""

    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return [
            Refused("it is bad") if item == "bad" else Output(f"{item} {name}{seed % 2}", {"even": seed % 2 == 0})
            for item, seed in zip(items, seeds, strict=True)
        ]

    return Step(name, "text", "text", lambda: one_each(flat), name, **settings)  # type: ignore[arg-type]


def augment(rows: list[TextRow], chain: Chain | None = None, seed: int = 0) -> tuple[list[Outcome], Totals]:
    totals = Totals()
    chain = chain or Chain([Level(numbered("f"), 2), Level(numbered("g"), 2)], 3)
    return augment_rows(chain, rows, "trial", seed, 20, Store(None), totals), totals


def test_new_texts_tell_the_way_they_came() -> None:
    (outcome,), totals = augment([TextRow(6, {"text": "hello"})])
    assert len(outcome.new) == 3 == totals.new and outcome.refusals == {}
    for number, new in enumerate(outcome.new, 1):
        made = new.provenance["made"]["text"]
        first, second = made["steps"]
        assert {key: new.provenance[key] for key in ("method", "row", "number", "seed")} == {
            "method": "trial",
            "row": 7,
            "number": number,
            "seed": 0,
        }
        assert first["step"] == "f" and first["text"].startswith("hello f") and "text" not in second
        assert new.texts == {"text": f"{first['text']} g{0 if second['even'] else 1}"}
        assert len(made["branch"]) == 2


def test_columns_are_augmented_each_for_itself_and_short_ones_keep_their_text() -> None:
    few = Filter("odd", lambda item, value: (not (item == "few" and value.endswith("1")), {}))
    chain = Chain([Level(numbered("f"), 6, (few,))], 4)
    (outcome,), totals = augment([TextRow(0, {"one": "few", "two": "many"})], chain)
    fewer = [new.texts["one"] for new in outcome.new]
    assert len(outcome.new) == 4 and all(new.texts["two"].startswith("many f") for new in outcome.new)
    kept = sum(text != "few" for text in fewer)
    assert 0 < kept < 4 and fewer[kept:] == ["few"] * (4 - kept)
    assert [sorted(new.provenance["made"]) for new in outcome.new] == [["one", "two"]] * kept + [["two"]] * (4 - kept)
    assert totals.dropped["odd"] == 6 - kept and totals.looked_at == 6 + 4


def test_rows_that_cannot_be_augmented_are_counted_with_their_reason() -> None:
    rows = [
        TextRow(0, {"a": "fine", "b": "bad"}),
        TextRow(1, {"a": " ", "b": "fine"}),
        TextRow(2, {"a": "x" * 21, "b": "bad"}),
        TextRow(3, {"a": "fine", "b": "fine"}),
    ]
    outcomes, totals = augment(rows)
    assert [len(outcome.new) for outcome in outcomes] == [3, 3, 0, 3]
    assert outcomes[2].refusals == {"a": "the text has 21 characters, more than max_characters=20", "b": "it is bad"}
    assert totals.refused == [
        (1, "b: it is bad"),
        (2, "a: the text is empty"),
        (3, "a: the text has 21 characters, more than max_characters=20"),
        (3, "b: it is bad"),
    ]
    assert all(new.texts["b"] == "bad" for new in outcomes[0].new)
    facts = totals.facts()
    assert (facts["rows"], facts["augmented rows"], facts["augmentations"]) == (4, 3, 9)
    assert facts["rows not augmented"][0] == [1, "b: it is bad"]
    assert facts["looked at"] == 3 + 3 + 3 + 3 and facts["share dropped"] == {}


def test_what_is_made_of_a_row_does_not_depend_on_others() -> None:
    rows = [TextRow(index, {"text": f"text {index}"}) for index in range(6)]
    together, _ = augment(rows)
    alone = [augment([row])[0][0] for row in rows[::-1]][::-1]
    assert [one.new for one in together] == [one.new for one in alone]
    assert augment(rows, seed=1)[0] != together
    part = Chain([Level(numbered("f"), 8)], 3)
    first, _ = augment([TextRow(0, {"a": "same"})], part)
    second, _ = augment([TextRow(0, {"b": "same"})], part)
    assert [new.provenance["made"]["a"]["branch"] for new in first[0].new] != [
        new.provenance["made"]["b"]["branch"] for new in second[0].new
    ]
