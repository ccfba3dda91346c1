"""The files that readers get: what stands in them, what cannot be done with them, and how long they may take."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typst

from sag.engine.export import file_refs, make_document
from sag_export import markdown, page
from sag_export.prose import LONGEST, Prose
from sag_export.story import tell
from tests.export.samples import ASKED, PICTURE, SCRIPTS, TS, dialogue, picture

Json = dict[str, Any]

FONTS = set(typst.Fonts().families())
WANTED = {
    f"Noto {face}" for face in ("Naskh Arabic", "Sans", "Sans Hebrew", "Sans Devanagari", "Sans Thai", "Sans CJK SC")
}
fonts = pytest.mark.skipif(not WANTED | {"Noto Color Emoji"} <= FONTS, reason="the fonts that .ci/run installs")
poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no poppler-utils here")
INVISIBLE = re.compile("[\u200b\u202a-\u202e\u2066-\u2069]")  # pdftotext marks directions


def sample(**files: bytes) -> Json:
    document = make_document(dialogue(), TS + 1, "r1", ASKED)
    data = base64.b64encode(files.get("data", PICTURE)).decode()
    file = {"mime": "image/png", "name": "chart.png", "size": len(PICTURE), "data": data}
    document["files"] = dict.fromkeys(file_refs(document), file)
    return document


def said(*texts: str, role: str = "assistant", title: str = "Talk") -> Json:
    """A document in which this was said."""
    return {
        "format": "sag.conversation", "version": 1, "exported_at": TS, "conversation": {"id": "c1", "title": title},
        "runs": {}, "tools": {}, "files": {}, "asks": {},
        "messages": [
            {"msg": f"m{i}", "role": role, "ts": TS + i, "parts": [{"kind": "text", "text": text}]}
            for i, text in enumerate(texts)
        ],
    }  # fmt: skip


def press(format: str, document: Json, **more: Any) -> tuple[bytes, list[str]]:
    """A file and its notes, as the plugin has them made."""
    order = msgspec.json.encode({"format": format, "document": document, **more})
    made = subprocess.run(
        [sys.executable, "-P", "-m", "sag_export.press"], input=order, capture_output=True, timeout=110
    )
    assert made.returncode == 0, made.stderr.decode()
    notes, _, data = made.stdout.partition(b"\n")
    return data, msgspec.json.decode(notes)


def run(program: str, *args: str, data: bytes = b"") -> str:
    done = subprocess.run([program, *args], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def pdf_text(pdf: bytes, *options: str) -> str:
    return INVISIBLE.sub("", run("pdftotext", *options, "-", "-", data=pdf))


class Page(HTMLParser):
    """What a browser would see of a page: its tags with their attributes, and its text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# what stands in them


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    document = sample()
    return {
        "md": markdown.render(tell(document)).decode(),
        "html": Page(page.render(tell(document))).text,
        "pdf": " ".join(pdf_text(press("pdf", document)[0], "-raw").split()),
    }


@pytest.mark.parametrize("format", ["md", "html", "pdf"])
@poppler
def test_everything_has_its_place(shown: dict[str, str], format: str) -> None:
    text = shown[format]
    order = [
        "Vans for Friday", "completed", "User", "Book two vans", "chart.png", "Optimist", "They want vans",
        "I look at the", "Find bookings", "lost", "Find bookings", "done, 1.2 s", "3 bookings", "Config changed",
        "bots.b1.temperature = 0.9", "Skeptic", "Greek", "mail_send",
         "denied, 0.9 s", "team@example.org", "The user denied this call.", "Allow mail_send? — deny",
        "Some bytes of the answer were no text", "No mail, please.", "How many seats? — {", "7", "Config changed",
        "max_turns = 4",
        "A plan in three steps", "And then we", "This was cut here.", "Answer to “plan”: yes", "Usage", "demo/a",
    ]  # fmt: skip
    at = 0
    for words in order:
        found = text.find(words, at)
        assert found >= 0, f"{words!r} does not follow {text[max(0, at - 200) : at]!r}"
        at = found
    assert "$0.0421" in text
    assert re.search(r"2,?812", text)


@pytest.mark.parametrize(
    ("status", "words"),
    [("running", "The run is running."), ("cancelled", "The run is cancelled."), ("interrupted", "is interrupted"),
     ("limit", "The run stopped at a limit: Enough."), ("failed", "The run failed: Enough.")],
)  # fmt: skip
def test_how_a_run_ended_is_told(status: str, words: str) -> None:
    document = sample()
    document["runs"]["r1"]["status"] = status
    if status in ("limit", "failed"):
        document["runs"]["r1"]["error"] = {"kind": "run.failed", "message": "Enough.", "retry": False}
    document["asks"] = {"a1": {"run": "r1", "kind": "approval", "title": "Send the mail?"}}
    text = markdown.render(tell(document)).decode()
    assert words in text
    assert "Waits for an answer: Send the mail?" in text


def test_a_call_that_no_message_names_is_shown() -> None:
    document = sample()
    document["tools"]["k8"] = {**document["tools"]["k3"], "name": "own_tool", "status": "ok", "result": {"n": 1}}
    document["tools"]["k8"].pop("error")
    text = markdown.render(tell(document)).decode()
    assert "own_tool" in text
    assert text.count("**Tool: mail_send**") == 1


def test_runs_are_told_apart() -> None:
    state = dialogue()
    state["runs"]["r2"] = {**state["runs"]["r1"], "kind": "chat", "changes": [], "begun": 2}
    state["messages"].append({**state["messages"][0], "msg": "m9", "run": "r2"})
    document = make_document(state, TS)
    kinds = [item.get("text") for item in tell(document).items if item["kind"] == "heading"]
    assert kinds == ["1. Dialogue", "2. Chat"]


# HTML


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>1</script>) [d](vbscript:x)",
    "![pixel](http://evil.example/pixel.png) ![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "</main></body><iframe src=//evil.example></iframe>",
    '`"><svg onload=alert(1)>` <a href="javascript:1">x</a> <style>@import "//evil.example";</style>',
    '[x](https://example.org/"onmouseover="alert(1))',
    "<http://example.org/><javascript:alert(1)>",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '```"onload=alert(1)\nx\n```',
]


def test_html_is_one_file_that_runs_nothing_and_fetches_nothing() -> None:
    document = sample()
    for i, text in enumerate(HOSTILE):
        for role in ("user", "assistant"):
            part = {"kind": "text", "text": text}
            document["messages"].append({"msg": f"h{i}{role}", "role": role, "run": "r1", "ts": TS, "parts": [part]})
        call = {**document["tools"]["k3"], "name": text, "args": {text: text}, "title": text}
        call["error"] = {"kind": "x", "message": text}
        document["tools"][f"h{i}"] = call
    document["conversation"]["title"] = HOSTILE[0]
    document["runs"]["r1"]["titles"]["b0"] = HOSTILE[4]
    document["runs"]["r1"]["changes"][0]["patch"] = {HOSTILE[1]: HOSTILE[0]}
    document["files"]["f1"]["name"] = HOSTILE[1]
    html = Page(page.render(tell(document)))
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "h4", "h5", "h6", "dl"),
        *(
            "dt",
            "dd",
            "article",
            "div",
            "b",
            "span",
            "p",
            "pre",
            "code",
            "details",
            "summary",
            "ul",
            "ol",
            "li",
            "table",
        ),
        *(
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "blockquote",
            "hr",
            "a",
            "em",
            "strong",
            "s",
            "br",
            "figure",
            "figcaption",
        ),
        *("img", "small"),
    }
    assert {tag for tag, _ in html.tags} <= allowed
    for tag, attrs in html.tags:
        assert not any(name.startswith("on") for name in attrs), attrs
        assert tag == "img" or "src" not in attrs
        if tag == "img":
            assert (attrs["src"] or "").startswith("data:image/png;base64,")
        if tag == "a":
            assert re.match(r"(https?://|mailto:)", attrs["href"] or ""), attrs
    assert sum(tag == "style" for tag, _ in html.tags) == 1
    for text in HOSTILE[:2]:
        assert text in html.text, "it is shown as it was written"


@pytest.mark.parametrize("data", [b"no picture", b"<svg onload=alert(1)>"])
def test_a_picture_is_never_more_than_a_picture(data: bytes) -> None:
    document = sample(data=data)
    document["files"]["f1"]["mime"] = "image/svg+xml"
    html = Page(page.render(tell(document)))
    assert not [tag for tag, _ in html.tags if tag in ("img", "svg")]


# Markdown


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    document = sample()
    document["tools"]["k2"]["result"] = "```\n````\n# not a heading"
    text = markdown.render(tell(document)).decode()
    assert "`````\n```\n````\n# not a heading\n`````" in text


def test_lists_and_tables_have_the_direction_of_what_is_first_in_them() -> None:
    seen = Page(page.render(tell(said("- שלום\n- b", "> - a", "| ש | b |\n| --- | --- |"))))
    framed = [(tag, attrs["dir"]) for tag, attrs in seen.tags if tag in ("ul", "blockquote", "table")]
    assert framed == [("ul", "rtl"), ("blockquote", "ltr"), ("ul", "ltr"), ("table", "rtl")]


# PDF


@pytest.fixture(scope="module")
def pdf(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("pdf") / "talk.pdf"
    data, notes = press("pdf", sample())
    path.write_bytes(data)
    assert notes == [], "the fonts that .ci/run installs have all of it"
    return path


@pytest.mark.parametrize("script", SCRIPTS)
@poppler
@fonts
def test_a_sample_of_each_script_is_found_in_the_pdf(pdf: Path, script: str) -> None:
    text = INVISIBLE.sub("", run("pdftotext", str(pdf), "-"))
    missing = [word for word in re.findall(r"[^\s,.;:?!،]+", SCRIPTS[script]) if word.strip("؟。") not in text]
    assert not missing


@poppler
@fonts
def test_letters_that_arabic_joins_are_found_in_their_order() -> None:
    words = "السلام عليكم ثلاثة على الآن"
    found = pdf_text(press("pdf", said(words))[0]).split()
    assert [word for word in words.split() if word not in found] == []


@poppler
@fonts
def test_what_is_written_from_right_to_left_stands_at_the_right() -> None:
    marks = {"Heading": "# אאא", "list": "- בבב\n  - גגג", "number": "1. דדד", "quote": "> ההה", "paragraph": "ווו"}
    marks["table"] = "| ז | זזז |\n| --- | --- |\n| ח | חחח |"
    data, _ = press("pdf", said("\n\n".join([*marks.values(), "- left"])))
    boxes = run("pdftotext", "-bbox", "-", "-", data=data)
    at = {word: float(x) for x, word in re.findall(r'xMax="([\d.]+)"[^>]*>([^<]+)</word>', boxes)}
    wrong = [word for word in ("אאא", "בבב", "גגג", "דדד", "ההה", "ווו", "זזז") if at[word] < 400]
    assert wrong == []
    assert at["ז"] > at["זזז"], "the first column is the one at the right"
    assert at["left"] < 200


@poppler
@fonts
def test_all_fonts_are_embedded(pdf: Path) -> None:
    lines = run("pdffonts", str(pdf)).splitlines()[2:]
    assert lines
    for line in lines:
        embedded, subset, unicode = line.split()[-5:-2]
        assert embedded == "yes", line
        assert unicode == "yes", line
    names = " ".join(lines)
    assert all(name in names for name in ("NotoNaskhArabic", "NotoSansHebrew", "NotoSansDevanagari", "NotoSansThai"))
    assert all(f"NotoSansCJK{region}" in names for region in ("sc", "jp", "kr")), "each language has its own shapes"


@poppler
@fonts
def test_pages_have_numbers_a_title_and_no_box_where_a_glyph_should_be(pdf: Path, tmp_path: Path) -> None:
    pages = int(re.search(r"Pages:\s+(\d+)", run("pdfinfo", str(pdf)))[1])  # type: ignore[index]
    text = INVISIBLE.sub("", run("pdftotext", str(pdf), "-"))
    assert re.search(rf"{pages}\s*/\s*{pages}", text)
    assert "Vans for Friday" in run("pdfinfo", str(pdf))
    run("pdftoppm", "-r", "40", "-png", str(pdf), str(tmp_path / "page"))
    assert len(list(tmp_path.glob("page*.png"))) == pages


@poppler
def test_a_picture_is_in_the_pdf_and_a_broken_one_is_named() -> None:
    data, _ = press("pdf", sample())
    assert b"/Image" in data
    data, _ = press("pdf", sample(data=b"no picture"))
    assert "chart.png" in pdf_text(data)
    data, _ = press("pdf", sample(data=picture(4000, 3000)))
    assert "chart.png" in pdf_text(data)


@poppler
def test_text_is_never_read_as_markup_of_the_typesetter() -> None:
    hostile = '#panic("x") #import "@preview/x:1.0.0" #read("/etc/passwd") $x$ @ref <label> \\ #eval("1")'
    document = said(hostile, f"`{hostile}`", f"```typ\n{hostile}\n```", title=hostile)
    document["messages"][0]["role"] = "user"
    text = " ".join(pdf_text(press("pdf", document)[0]).split())
    assert text.count('#panic("x")') >= 4
    assert "root:" not in text


@poppler
def test_where_fonts_lack_characters_the_file_and_the_answer_say_so() -> None:
    data, notes = press("pdf", said("नमस्ते and 你好 and 🚀 and plain"), system_fonts=False)
    (note,) = notes
    assert "are shown as boxes" in note
    assert "CJK, Devanagari, Emoji" in note
    assert "U+" in note
    assert "are shown as boxes" in " ".join(pdf_text(data).split())
    _, notes = press("pdf", said("plain, Grüße, Nẵng, ελληνικά, кириллица"), system_fonts=False)
    assert notes == []


@fonts
def test_fonts_of_a_folder_are_taken(tmp_path: Path) -> None:
    font = next(f for f in typst.Fonts().fonts() if (f.family, f.weight) == ("Noto Sans Thai", 400))
    assert font.path is not None
    shutil.copy(font.path, tmp_path)
    _, notes = press("pdf", said("สวัสดี"), system_fonts=False, fonts=[str(tmp_path)])
    assert notes == []


# bounds


HUGE = {
    "brackets": "[" * (LONGEST - 1),
    "struck": "~~a" * (LONGEST // 4),
    "lists": "".join("  " * i + "- a\n" for i in range(300)),
    "wide": "|" + "a|" * 5000 + "\n|" + "-|" * 5000 + "\n|" + "b|" * 5000,
    "word": "x" * 250_000,
    "arabic": "م" * 90_000,
    "pile": "a" + "\u0301" * 90_000,
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\u202e\u2066\ufeff",
}


@pytest.mark.parametrize("name", HUGE)
def test_hostile_text_is_set_in_bounded_time(name: str) -> None:
    began = time.monotonic()
    for format in ("html", "pdf"):
        data, _ = press(format, said(HUGE[name], role="assistant"))
        assert data
    assert time.monotonic() - began < 40


def test_many_hostile_texts_share_one_budget_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sag_export.prose.BUDGET_S", 0.2)
    prose = Prose()
    began = time.monotonic()
    for _ in range(200):
        prose.tree("[" * 20_000)
    assert time.monotonic() - began < 10
    assert prose.html("**bold**") == '<p class="plain" dir="auto">**bold**</p>'


@pytest.mark.timeout(180)
@poppler
def test_ten_thousand_messages_are_exported() -> None:
    document = said(*(f"Message {i} with **some** words and `code`." for i in range(10_000)))
    data, _ = press("html", document)
    assert data.count(b"<article") == 10_000
    data, notes = press("pdf", document)
    assert notes == []
    assert "Message 9999" in pdf_text(data)


@poppler
def test_what_is_too_long_for_a_pdf_ends_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from sag_export import pdf as module

    monkeypatch.setattr(module, "MOST", 1000)
    data, notes = module.render(tell(said("a" * 500, "b" * 500, "c" * 500)), [], True)
    assert notes == ["The conversation is too long for a PDF: 2 entries at its end are left out."]
    assert "2 entries at its end" in " ".join(pdf_text(data).split())
