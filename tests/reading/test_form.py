"""The model in a multipart form, whole and in pieces."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.reading.asked import Naming
from proxy.reading.form import PassingForm, read_form
from tests.go_json.readings import readings
from tests.support.examples import examples

TYPE = "multipart/form-data; boundary=abc"
MODEL = b'--abc\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
FILE = b'--abc\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\r\n--ab\0" * 40 + b"\r\n"
END = b"--abc--\r\n"
DISPOSITION = b'form-data; name="model"'


def passed(form, pieces, content_type=TYPE, query=""):
    """Feed a form in pieces. Return what it asks for, what went on, and what was held."""
    passing = PassingForm(content_type, query)
    on = b"".join([passing.feed(piece) for piece in pieces])
    return passing.end(), on, passing.held


def test_form_of_a_client_is_read():
    """A form that an SDK's HTTP client writes names its model."""
    request = httpx.Request("POST", "http://x/", data={"model": "whisper"}, files={"file": ("a.wav", b"RIFF" * 50)})
    asked = read_form(request.headers["content-type"], "", request.read())
    assert (asked.naming, asked.model, asked.prompt) == (Naming.NAMED, "whisper", True)


@pytest.mark.parametrize("form", [MODEL + FILE + END, FILE + MODEL + END], ids=["model-first", "model-last"])
def test_everything_goes_on_but_the_last_boundary(form):
    """Ollama acts on the last boundary: that is held back, with what follows it."""
    asked, on, held = passed(form, [form])
    assert asked.model == "whisper"
    assert (on + held, held) == (form, b"\r\n" + END)


def padded(size):
    """Return a form with a part whose head has this many bytes, with the empty line."""
    head = b"Content-Disposition: " + DISPOSITION + b"\r\nX: %b\r\n\r\n"
    return b"--abc\r\n" + head % (b"x" * (size - len(head) + 2)) + b"whisper\r\n" + END


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(MODEL + b"--abc--", id="no line end at the end"),
        pytest.param(MODEL + b"--abc--" + b"\r\n" * 32, id="as many line ends at the end as may be"),
        pytest.param(FILE * 63 + MODEL + END, id="as many parts as may be"),
        pytest.param(padded(8192), id="the longest head"),
        pytest.param(MODEL.replace(DISPOSITION, DISPOSITION + b"  ") + END, id="blanks behind a value"),
        *(
            pytest.param(
                MODEL.replace(DISPOSITION, DISPOSITION + b"\r\ncontent-transfer-encoding: " + each) + END,
                id=each.decode(),
            )
            for each in (b"7bit", b"8BIT", b"binary")
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 1_000_000], ids=["byte by byte", "whole"])
def test_form_within_the_bounds_is_read(form, size):
    """A form is read up to each bound, and all of it may go on but its end."""
    asked, on, held = passed(form, [form[at : at + size] for at in range(0, len(form), size)])
    assert (asked.naming, asked.model) == (Naming.NAMED, "whisper")
    assert on + held == form


def test_longest_name_is_read():
    """A model's name is read if it has up to 1,022 bytes, which no model's has."""
    for size, naming in ((1022, Naming.NAMED), (1023, Naming.UNREADABLE)):
        form = MODEL.replace(b"whisper", b"x" * size) + END
        assert read_form(TYPE, "", form).naming is naming


def test_file_is_not_held():
    """However large a file is, next to nothing of it is held back while it passes."""
    passing = PassingForm(TYPE, "")
    passing.feed(MODEL + FILE[:-2])
    for _ in range(20):
        assert len(passing.feed(b"x" * 1000)) == 1000
        assert len(passing.held) < 10


@pytest.mark.parametrize("reading", [pytest.param(each, id=each.id) for each in readings("form")])
def test_byte_by_byte_is_as_whole(reading):
    """A form that comes byte by byte is read as one that comes at once."""
    form, case = reading.body, (reading.case["content_type"], reading.case["query"])
    whole, on, held = passed(form, [form], *case)
    asked, on_in_bytes, held_in_bytes = passed(form, [form[at : at + 1] for at in range(len(form))], *case)
    assert asked == whole
    assert on + held == on_in_bytes + held_in_bytes == form
    if whole.naming is Naming.NAMED:
        assert on == on_in_bytes


@examples(300)
@given(st.binary(max_size=60), st.lists(st.integers(0, 400), max_size=6))
def test_pieces_are_as_whole(content, cuts):
    """However a form with any file is cut, its model is the same."""
    form = (
        b'--abc\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + b"\r\n" + MODEL + END
    )
    places = sorted({0, len(form), *(cut % len(form) for cut in cuts)})
    pieces = [form[begin:end] for begin, end in pairwise(places)]
    whole, (asked, on, held) = passed(form, [form])[0], passed(form, pieces)
    assert asked == whole
    assert on + held == form


@pytest.mark.parametrize(
    ("content_type", "query", "form", "why"),
    [
        (TYPE, "", MODEL + MODEL + END, "the form has more than one field `model`"),
        (TYPE, "m%6Fdel=x", MODEL + END, "the query may name another model than the form"),
        ("multipart/form-data", "", MODEL + END, "the form has no plain boundary"),
        (TYPE + "; charset=utf-8", "", MODEL + END, "the form has no plain boundary"),
        (TYPE, "", b"x" + MODEL + END, "the form does not begin with its boundary"),
        (TYPE, "", END, "a boundary of the form is not alone on its line"),
        (TYPE, "", MODEL + b"--abcd\r\n" + END, "a boundary of the form is not alone on its line"),
        (TYPE, "", MODEL, "the form is not complete"),
        (TYPE, "", MODEL + END + b"x", "more follows the form"),
        (TYPE, "", MODEL + END + b"X", "more follows the form"),
        (TYPE, "", MODEL + END + b" ", "more follows the form"),
        (TYPE, "", MODEL + b"--abc--" + b"\r\n" * 32 + b"\r", "more follows the form"),
        (TYPE, "", FILE + END, "the form names no model"),
        (TYPE, "", MODEL.replace(b"whisper", b"x" * 2000) + END, "the field `model` is too long"),
        (TYPE, "", MODEL.replace(b"whisper", b"\xff") + END, "`model` is not a plain text"),
        (TYPE, "", MODEL.replace(b'"model"', b'"model"; filename="x"') + END, "the field `model` is a file"),
        (TYPE, "", MODEL.replace(b'"model"', b"model") + END, "a part of the form has an odd head"),
        (TYPE, "", MODEL.replace(b"\r\n\r\n", b"\r\nodd\r\n\r\n") + END, "a part of the form has an odd head"),
        (
            TYPE,
            "",
            MODEL.replace(b"\r\n\r\n", b"\r\nContent-Disposition: x\r\n\r\n") + END,
            "a part of the form has an odd head",
        ),
        (TYPE, "", b"--abc\r\n\r\n\r\nx" + END, "a part of the form has an odd head"),
        (TYPE, "", MODEL.replace(DISPOSITION, DISPOSITION + b"\xa0") + END, "a part of the form has an odd head"),
        (TYPE, "", MODEL.replace(DISPOSITION, DISPOSITION + b"X") + END, "a part of the form has an odd head"),
        (
            TYPE,
            "",
            MODEL.replace(DISPOSITION, DISPOSITION + b"\r\nContent-Transfer-Encoding: base64") + END,
            "a part of the form has an odd head",
        ),
        (TYPE, "", b"--abc\r\nX: " + b"x" * 9000, "a part of the form has too long a head"),
        (TYPE, "", b"--abc\r\nX: " + b"x" * 8188, "the form is not complete"),
        (TYPE, "", b"--abc\r\nX: " + b"x" * 8189, "a part of the form has too long a head"),
        (TYPE, "", padded(8193), "a part of the form has too long a head"),
        (TYPE, "", FILE * 65 + END, "the form has too many parts"),
    ],
)
def test_why_no_model_is_named(content_type, query, form, why):
    """A form without a certain model says why, and is not let on to its end."""
    asked, on, held = passed(form, [form], content_type, query)
    assert (asked.model, asked.why, asked.prompt) == (None, why, True)
    assert on + held == form
