"""The folds, held to the recorded transcripts that the TypeScript client is held to as well."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sag.topics.reducers import FAMILIES

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "transcripts").glob("*.json"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda p: p.stem)
def test_a_transcript_folds_to_its_end(path: Path) -> None:
    transcript: dict[str, Any] = json.loads(path.read_text())
    family, _, id = transcript["topic"].partition(":")
    fold = FAMILIES[family](id)
    if transcript["start"] is not None:
        fold.load(copy.deepcopy(transcript["start"]))
    for event in transcript["events"]:
        fold.fold(event["e"], event["d"])
    assert fold.state == transcript["end"]


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 8
