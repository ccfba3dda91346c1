"""What a model is sent where it cannot read a file, or where the conversation is too long for it."""

from __future__ import annotations

import pytest

from sag.engine.fitting import FILES, LEFT_OUT, count, fit_files, fit_length, room
from sag.hooks.provider import (
    CallRequest,
    FilePart,
    Message,
    Model,
    ModelRequest,
    ProviderError,
    TextPart,
    text_message,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
SEES = Model("m", abilities=["images"])
READS = Model("m", abilities=["images", "files"])
BLIND = Model("m", abilities=["tools"])


def fitted(file: FilePart, model: Model | None) -> TextPart | FilePart:
    message = Message("user", [TextPart("look"), file])
    fit_files([message], model)
    part = message.parts[1]
    assert isinstance(part, TextPart | FilePart)
    return part


def test_text_files_become_text_for_every_model() -> None:
    part = fitted(FilePart("text/csv", "a.csv", "ä;b\n".encode()), BLIND)
    assert part == TextPart("a.csv:\n```\nä;b\n\n```")


@pytest.mark.parametrize("model", [SEES, READS, None])
def test_images_go_to_models_that_see_and_to_those_of_which_it_is_not_known(model: Model | None) -> None:
    assert fitted(FilePart("image/*", "a.png", PNG), model) == FilePart("image/png", "a.png", PNG)


def test_a_model_that_does_not_see_is_told_of_the_image() -> None:
    assert fitted(FilePart("image/png", "a.png", PNG), BLIND) == TextPart(
        "[image: a.png, which this model cannot read]"
    )


def test_documents_go_only_to_models_that_are_known_to_read_them() -> None:
    pdf = FilePart("application/octet-stream", "a.pdf", b"%PDF-1.7 x")
    assert fitted(pdf, READS) == FilePart("application/pdf", "a.pdf", b"%PDF-1.7 x")
    for model in (SEES, BLIND, None):
        assert isinstance(fitted(pdf, model), TextPart)


def test_the_newest_files_go_first_where_all_are_too_large() -> None:
    old, new = (Message("user", [FilePart("image/png", name, PNG + b"\0" * (FILES // 2))]) for name in ("old", "new"))
    fit_files([old, new], SEES)
    assert isinstance(new.parts[0], FilePart)
    assert old.parts == [TextPart("[image: old, left out because it is too large]")]


def test_a_file_that_is_gone_is_said_to_be() -> None:
    assert fitted(FilePart("image/png", "a.png", b""), SEES) == TextPart("[a.png: the file is no longer there]")


def turns(number: int, size: int = 4000) -> list[Message]:
    out = [text_message("system", "be kind")]
    for i in range(number):
        out += [text_message("user", f"{i} " + "x" * size), text_message("assistant", f"{i} " + "y" * size)]
    return [*out, text_message("user", "and now?")]


def test_the_oldest_turns_go_until_it_fits() -> None:
    request = ModelRequest("m", turns(10))
    left_out = fit_length(request, 5000, count)
    assert left_out == 16
    assert count(request) <= 5000
    assert [m.text[:2] for m in request.messages] == ["be", "8 ", "8 ", "9 ", "9 ", "an"]


def test_what_fits_is_left_alone() -> None:
    request = ModelRequest("m", turns(3))
    assert fit_length(request, 1_000_000, count) == 0
    assert len(request.messages) == 8


def test_a_turn_goes_with_its_calls_and_their_answers() -> None:
    messages = [
        text_message("user", "old"),
        Message("assistant", [CallRequest("a", "f", "{}")]),
        Message("tool", [TextPart("z" * 40_000)], "a"),
        text_message("assistant", "done"),
        text_message("user", "new"),
    ]
    request = ModelRequest("m", messages)
    assert fit_length(request, 1000, count) == 4
    assert [m.text for m in request.messages] == ["new"]


def test_old_results_of_a_long_turn_are_emptied_but_the_newest_are_not() -> None:
    messages = [text_message("user", "go")]
    for i in range(4):
        messages.append(Message("assistant", [CallRequest(f"c{i}", "f", "{}")]))
        messages.append(Message("tool", [TextPart(str(i) * 8000)], f"c{i}"))
    request = ModelRequest("m", messages)
    assert fit_length(request, 4500, count) == 2
    assert [m.text[:4] for m in request.messages if m.role == "tool"] == [LEFT_OUT[:4], LEFT_OUT[:4], "2222", "3333"]


def test_a_question_that_alone_is_too_long_is_an_error() -> None:
    with pytest.raises(ProviderError) as raised:
        fit_length(ModelRequest("m", [text_message("user", "x" * 100_000)]), 1000, count)
    assert raised.value.kind == "provider.context"
    assert "25" in raised.value.message


def test_the_answer_needs_room_too() -> None:
    assert room(None, ModelRequest("m", [])) is None
    assert room(Model("m"), ModelRequest("m", [])) is None
    assert room(Model("m", context=10_000, output=1000), ModelRequest("m", [])) == 9000
    assert room(Model("m", context=10_000, output=1000), ModelRequest("m", [], max_tokens=3000)) == 7000
    assert room(Model("m", context=8000, output=8000), ModelRequest("m", [])) == 6000


def test_a_provider_that_counts_less_of_old_turns_than_estimated_has_more_of_them_left_out() -> None:
    def counted(request: ModelRequest) -> int:  # a long number is one token, a word of the others five
        return sum(500 if "new" in m.text else 100 for m in request.messages)

    turns = [text_message(role, "9" * 4000) for _ in range(6) for role in ("user", "assistant")]
    request = ModelRequest("m", [*turns, text_message("user", "new")])
    assert fit_length(request, 900, counted) == 8
    assert counted(request) == 900
    with pytest.raises(ProviderError):
        fit_length(request, 499, counted)
    assert [m.text for m in request.messages] == ["new"], "all that can go went"


def test_results_of_tools_go_until_the_providers_own_count_fits() -> None:
    def counted(request: ModelRequest) -> int:
        return sum(10 if m.text == LEFT_OUT or m.role != "tool" else 100 for m in request.messages)

    rounds = [
        m
        for n in range(5)
        for m in (
            Message("assistant", [CallRequest(f"c{n}", "f", "{}")]),
            Message("tool", [TextPart("x" * 4000)], f"c{n}"),
        )
    ]
    request = ModelRequest("m", [text_message("user", "go"), *rounds])
    assert fit_length(request, 300, counted) == 3
    assert counted(request) == 290
    assert request.messages[-1].text != LEFT_OUT


@pytest.mark.parametrize("context", [None, 0, -5])
def test_a_size_that_cannot_be_is_not_known(context: int | None) -> None:
    assert room(Model("m", context=context), ModelRequest("m", [])) is None
