"""The vendor's signature: made here as there, and nothing but it accepted."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from easel.gateway import signature
from tests.gateway.sdk import PredictClient

texts = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=40)
paths = st.text("abc/%2F?=&_ \xe4", max_size=20)
bodies = st.binary(max_size=100)


@given(texts, paths, bodies, st.sampled_from(["", "application/json", "text/plain; x=y"]))
def test_it_is_what_the_vendors_client_makes(
    token: str, path: str, body: bytes, content_type: str
) -> None:
    client = PredictClient("http://x", "paint" + path)
    client.set_token(token)
    client.set_content_type(content_type)
    headers = client.generate_singaure(bytearray(body))
    made = signature.sign(
        token.encode(),
        method=b"POST",
        md5=headers["Content-MD5"].encode(),
        content_type=headers["Content-Type"].encode(),
        date=headers["Date"].encode(),
        resource=f"/api/predict/paint{path}".encode(),
    )
    assert headers["Authorization"] == f"EAS {made.decode()}"
    check = signature.BodyCheck(headers["Content-MD5"])
    check.add(body[:10])
    check.add(body[10:])
    assert check.matches()


parts = st.fixed_dictionaries(
    {
        "method": st.sampled_from([b"GET", b"POST"]),
        "md5": st.binary(max_size=8),
        "content_type": st.binary(max_size=8),
        "date": st.binary(max_size=8),
        "resource": st.binary(min_size=1, max_size=8),
    }
).filter(lambda found: not any(b"\n" in value for value in found.values()))


@given(st.binary(min_size=1, max_size=80), parts, parts, st.binary(max_size=80))
def test_only_what_was_signed_fits(
    token: bytes, mine: dict[str, bytes], other: dict[str, bytes], wrong: bytes
) -> None:
    made = signature.sign(token, **mine)

    def fits(given: bytes, key: bytes, found: dict[str, bytes]) -> bool:
        rest = {name: value for name, value in found.items() if name != "resource"}
        return signature.verify(given, key, resources=[b"else", found["resource"]], **rest)

    assert fits(made, token, mine)
    text = b"\n".join(mine.values()).strip()
    if b"\n".join(other.values()).strip() != text and other["resource"] != b"else":
        assert not fits(made, token, other)
    assert not fits(wrong, token, mine) or wrong == made
    if wrong.rstrip(b"\0") != token.rstrip(b"\0") and len(wrong) <= 64 >= len(token):
        assert not fits(made, wrong, mine)


@given(st.binary(max_size=40))
def test_anything_may_stand_in_content_md5(header: bytes) -> None:
    found = signature.normal_md5(header)
    assert found is None or (len(found) == 32 and int(found, 16) == int(header, 16))


@given(st.integers(0, 4_000_000_000), st.integers(-40 * 3600, 40 * 3600))
def test_a_day_is_the_limit(at: int, off: int) -> None:
    date = dt.datetime.fromtimestamp(at, dt.UTC).strftime(signature.DATE_FORMAT)
    assert signature.is_outdated(date.encode(), (at + off) * 1000) == (abs(off) >= 24 * 3600)


@given(st.binary(max_size=40))
def test_odd_dates_are_not_judged(date: bytes) -> None:
    assert signature.is_outdated(date, 0) in (True, False)
