"""The TOML file as people save it: read if it can be, else an error that shows the line and says what to do."""

from __future__ import annotations

import codecs
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.settings.config_file import SIZE_LIMIT, ConfigFileError, parse, read

SMART = "it has curly quotes, write plain ones (TextEdit: Edit > Substitutions, turn off Smart Quotes)"
SAVE = "save it as plain text in UTF-8"


def fault(octets: bytes | str) -> str:
    """Return why a file can't be read."""
    with pytest.raises(ConfigFileError) as caught:
        parse(octets.encode() if isinstance(octets, str) else octets)
    return str(caught.value)


def said(octets: bytes) -> str:
    """Return why a file can't be read; nothing if it can."""
    try:
        parse(octets)
    except ConfigFileError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"port = 5\nlog_keep = 6", id="plain"),
        pytest.param(codecs.BOM_UTF8 + b"port = 5\nlog_keep = 6\n", id="byte_order_mark"),
        pytest.param(codecs.BOM_UTF8 + b"port = 5\r\nlog_keep = 6\r\n", id="windows"),
        pytest.param(b"port = 5\rlog_keep = 6\r", id="old_mac"),
        pytest.param(b"\n\nport = 5\n\t log_keep = 6  \n\n", id="blanks"),
        pytest.param("port = 5 # “quoted”\nlog_keep = 6".encode(), id="curly_quotes_in_a_comment"),
    ],
)
def test_as_it_is_saved(octets):
    """A byte order mark, any line ends and blanks make no difference."""
    assert parse(octets) == {"port": 5, "log_keep": 6}


def test_curly_quotes_in_a_text():
    """Within plain quotes curly ones are characters like others."""
    assert parse('a = "“x”"'.encode()) == {"a": "“x”"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "port = 5\nallow = [“GET /”]\n", "invalid value, in line 2, column 10: `allow = [“GET /”]`", id="both"
        ),
        pytest.param('a = "x”\n', "illegal character '\\n', in line 1, column 8: `a = \"x”`", id="closing"),
        pytest.param("a = ‘x’\n", "invalid value, in line 1, column 5: `a = ‘x’`", id="single"),
        pytest.param("a = [\n “x”,\n]\n", "invalid value, in line 2, column 2: `“x”,`", id="in_an_array"),
        pytest.param("“a” = 1\n", "invalid statement, in line 1, column 1: `“a” = 1`", id="key"),
        pytest.param("a = „x“\n", "invalid value, in line 1, column 5: `a = „x“`", id="german"),
        pytest.param("a = «x»\n", "invalid value, in line 1, column 5: `a = «x»`", id="french"),
    ],
)
def test_curly_quotes(text, message):
    """Curly quotes are named, with the line and what to turn off."""
    assert fault(text) == f"is not TOML: {message}: {SMART}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "port 5\n",
            "expected '=' after a key in a key/value pair, in line 1, column 6: `port 5`",
            id="no_equals_sign",
        ),
        pytest.param(
            "a = 1\n\na = 2", "cannot overwrite a value, in line 3, column 6: `a = 2`, where the file ends", id="twice"
        ),
        pytest.param(
            "a = [\n1,\n\n",
            "invalid value, in line 2, column 3: `1,`, where the file ends",
            id="end_of_the_file",
        ),
        pytest.param(
            "a = GET # it’s\n", "invalid value, in line 1, column 5: `a = GET # it’s`", id="quote_in_a_comment"
        ),
        pytest.param(
            "a =\u00a05\n",
            r"invalid value, in line 1, column 4: `a =\xa05`: "
            "the character there is U+00A0 NO-BREAK SPACE; write a plain one",
            id="no_break_space",
        ),
        pytest.param(
            "a ＝ 5\n",
            "expected '=' after a key in a key/value pair, in line 1, column 3: `a ＝ 5`: "
            "the character there is U+FF1D FULLWIDTH EQUALS SIGN; write a plain one",
            id="full_width",
        ),
        pytest.param("\x1b[31m", r"invalid statement, in line 1, column 1: `\x1b[31m`", id="steers_a_terminal"),
    ],
)
def test_syntax(text, message):
    """A fault of syntax shows its line, with what could steer a terminal escaped; an odd character is named."""
    assert fault(text) == f"is not TOML: {message}"


def test_long_line():
    """Of a long line the part with the fault is shown."""
    reported = fault(f"a = [{'1, ' * 500}x{', 1' * 500}]")
    assert "x, 1, 1" in reported
    assert reported.count("…") == 2
    assert len(reported) < 200


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        pytest.param("port = 5\n".encode("utf-16"), f"is in UTF-16: {SAVE}", id="utf_16"),
        pytest.param(codecs.BOM_UTF16_BE + "port = 5\n".encode("utf-16-be"), f"is in UTF-16: {SAVE}", id="utf_16_be"),
        pytest.param("port = 5\n".encode("utf-16-le"), f"is in UTF-16: {SAVE}", id="utf_16_without_mark"),
        pytest.param("port = 5\n".encode("utf-16-be"), f"is in UTF-16: {SAVE}", id="utf_16_be_without_mark"),
        pytest.param("port = 5\n".encode("utf-32"), f"is in UTF-32: {SAVE}", id="utf_32"),
        pytest.param(b"a = 1\nport\0 = 5\n", r"has a NUL byte in line 2: `port\x00 = 5`: remove it", id="nul"),
        pytest.param(b'a = "\0"', r'has a NUL byte in line 1: `a = "\x00"`: remove it', id="nul_in_a_text"),
        pytest.param(b"a = 1\r# caf\xe9\rb = 2", rf"is not UTF-8 in line 2: `# caf\xe9`: {SAVE}", id="latin_1"),
        pytest.param(
            codecs.BOM_UTF8 + b"# \xff", rf"is not UTF-8 in line 1: `# \xff`: {SAVE}", id="marked_and_not_utf_8"
        ),
        pytest.param(
            rb"{\rtf1\ansi port = 5}",
            "is a rich text document: save it as plain text (TextEdit: Format > Make Plain Text)",
            id="rich_text",
        ),
    ],
)
def test_not_a_text_in_utf_8(octets, message):
    """A file in another encoding or format is named as that, with what to do."""
    assert fault(octets) == message


@pytest.mark.parametrize(
    "text", ["a = " + "9" * 5000, "a = " + "[" * 5000, "a." * 2000 + "a = 1"], ids=["digits", "lists", "keys"]
)
def test_without_end(text):
    """A number, list or key that Python itself gives up on is an error like others, or is read."""
    assert said(text.encode()) in {
        "",
        "can't be read as TOML: a number in it is too large, or lists are nested too deeply",
    }


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
@example(b"\0")
@example(b"\xef\xbb\xbf")
def test_any_bytes(octets):
    """Whatever is in the file, it is read, or the error is one line that can be printed."""
    assert said(octets).isprintable()


# --- what no settings file is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" + ".a" * 3000 + " = 1", id="dotted_key"),
        pytest.param("[a" + ".a" * 3000 + "]", id="dotted_table"),
        pytest.param("ollama_env.A" + ".a" * 3000 + " = 1", id="within_variables"),
        pytest.param("a = " + "[" * 200 + "]" * 200, id="lists"),
        pytest.param("a = 0x" + "f" * 10_000, id="hexadecimal"),
        pytest.param("ollama_env.A = 0b" + "1" * 20_000, id="binary"),
        pytest.param("a = [[0o" + "7" * 10_000 + "]]", id="octal_in_a_list"),
    ],
)
def test_what_cannot_be_shown(text):
    """Tables too deep and numbers too large for Python to print are an error, never a traceback."""
    assert "is too large" in fault(text)


def test_large_number():
    """A number that can be printed is taken, so that the option itself says what is wrong with it."""
    assert parse(b"port = 99999999999999999999") == {"port": 99999999999999999999}


def test_fifo(tmp_path):
    """A pipe that nobody writes to is an error at once, not something to wait for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigFileError, match="is not a file but a pipe or a device"):
        read(tmp_path / "pipe")


def test_null_device():
    """The null device is an empty file, as a command line without settings may name it."""
    assert read(os.devnull) == b""


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/random"])
def test_other_devices(name):
    """A device that gives bytes without end, or none, is an error."""
    with pytest.raises(ConfigFileError, match="is not a file but a pipe or a device"):
        read(name)


def test_file_too_large(tmp_path):
    """A file larger than any settings is not read whole."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"#" * SIZE_LIMIT)
    assert len(read(file)) == SIZE_LIMIT
    file.write_bytes(b"#" * (SIZE_LIMIT + 1))
    with pytest.raises(ConfigFileError, match="has more than 64 KiB"):
        read(file)


def test_utf16_behind_a_mark_of_utf8():
    """A mark that some program put before another coding doesn't hide that coding."""
    assert fault(codecs.BOM_UTF8 + "port = 5".encode("utf-16-le")) == f"is in UTF-16: {SAVE}"
