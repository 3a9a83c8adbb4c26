"""Splitting a service's script into what prepares and what is the engine."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.services.script import read_script


@pytest.mark.parametrize(
    ("script", "prepare"),
    [
        ("pip install x > /tmp/log\npython main.py", ["pip install x > /tmp/log"]),
        ("export A=$HOME/x; cd /y && python main.py", ["export A=$HOME/x", "cd /y"]),
        ("""echo 'a;b' "c&&d" | tee b; python main.py""", ["""echo 'a;b' "c&&d" | tee b"""]),
        ("# it's ready\npip install \\\n a\n\npython main.py # run; it", ["pip install   a"]),
        ("echo a\\;b;;python main.py", ["echo a\\;b"]),
        ("echo a#b # c\n#\npython main.py;#x", ["echo a#b"]),
        ("python main.py", []),
    ],
)
def test_what_prepares_stays_as_it_is_written(script: str, prepare: list[str]) -> None:
    read = read_script(script)
    assert not read.faults
    assert read.engine is not None
    assert read.engine.kind == "comfyui"
    assert read.engine.prepare == prepare


@pytest.mark.parametrize(
    "script",
    [
        "",
        " \n;\n",
        "# only words",
        "echo 'x\npython main.py",
        'python main.py "',
        "python main.py | tee log",
    ],
)
def test_faults(script: str) -> None:
    assert read_script(script).faults


@given(
    st.lists(
        st.lists(st.text(min_size=1).filter(lambda word: "\\\n" not in word), min_size=1),
        min_size=1,
    )
)
def test_quoted_words_come_through(commands: list[list[str]]) -> None:
    text = " && ".join(shlex.join(words) for words in commands)
    read = read_script(f"{text}; run it")
    assert not read.faults
    assert read.engine is not None
    assert [shlex.split(line) for line in read.engine.prepare] == commands
    assert read.engine.command == ["run", "it"]
