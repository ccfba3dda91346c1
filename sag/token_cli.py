"""placeholder"""

import argparse
from typing import Any


def add_parser(commands: Any) -> None: ...


def run(args: argparse.Namespace) -> int:
    return 1
