"""Lists, updates and custom fields, over a double of ``call()``."""

import tracemalloc
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from django_infusionsoft.api import custom_fields
from django_infusionsoft.api.paging import items_of
from django_infusionsoft.api.records import Records
from django_infusionsoft.exceptions import ApiError

MODEL = {
    "custom_fields": [
        {"id": "45", "label": "Favorite Color", "field_name": "FavoriteColor"},
        {"id": "46", "label": "Score", "field_name": "Score0"},
    ]
}


class Recorded(Records):
    """Answers by a function, and records the calls."""

    def __init__(self, answer: Callable[[str, str, dict[str, Any]], Any]) -> None:
        self.models_key = self
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self._answer = answer

    def call(self, method: str, url: str, **kwargs: Any) -> Any:
        self.calls.append((method, url, kwargs))
        return self._answer(method, url, kwargs.get("params") or {})


def v1_list(total: int) -> Callable[[str, str, dict[str, Any]], Any]:
    """As Keap: there is always a ``next``."""

    def answer(method: str, url: str, params: dict[str, Any]) -> Any:
        params = {**dict(parse_qsl(urlsplit(url).query)), **params}
        start, limit = int(params.get("offset", 0)), int(params.get("limit", 1000))
        contacts = [{"id": number} for number in range(total)[start : start + limit]]
        return {"contacts": contacts, "count": total, "next": "https://x/?offset=9"}

    return answer


def v2_list(
    total: int, size: int, last: dict[str, Any], token: str = "{}", padding: str = ""
) -> Any:
    def answer(method: str, url: str, params: dict[str, Any]) -> Any:
        start = int(params.get("page_token", 0))
        end = min(start + size, total)
        more = {"next_page_token": token.format(end)} if end < total else last
        ids = map(str, range(start, end))
        return {"contacts": [{"id": each} | _padded(each, padding) for each in ids], **more}

    return answer


def _padded(number: str, padding: str) -> dict[str, str]:
    return {"notes": f"{padding}{number}"} if padding else {}


@pytest.mark.parametrize("total", [0, 1, 3, 4, 7])
def test_all_items_of_v1_are_yielded_although_next_never_ends(total: int) -> None:
    session = Recorded(v1_list(total))
    found = list(session.items("v1/contacts", limit=2, email="a@ex.test"))
    assert found == [{"id": number} for number in range(total)]
    for _, _, kwargs in session.calls:
        assert kwargs["params"]["email"] == "a@ex.test"
        assert kwargs["params"]["order"] == "id"


def test_list_of_v1_begins_at_the_callers_offset() -> None:
    session = Recorded(v1_list(7))
    expected = [{"id": number} for number in range(5, 7)]
    assert list(session.items("v1/contacts?offset=5&limit=1")) == expected
    assert list(session.items("v1/contacts", offset=5, limit=1)) == expected


@pytest.mark.parametrize("last", [{}, {"next_page_token": ""}, {"next_page_token": None}])
@pytest.mark.parametrize("token", ["{}", "https://api.keap.com/crm/rest/v2/x?page_token={}&a=b"])
@pytest.mark.parametrize("total", [0, 2, 5])
def test_all_items_of_v2_are_yielded(total: int, token: str, last: dict[str, Any]) -> None:
    session = Recorded(v2_list(total, 2, last, token))
    found = [each["id"] for each in session.items("v2/contacts", filter="x==1")]
    assert found == [str(number) for number in range(total)]
    assert {kwargs["params"]["filter"] for _, _, kwargs in session.calls} == {"x==1"}


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_page_token_that_repeats_is_an_error(before: int, length: int) -> None:
    def answer(method: str, url: str, params: dict[str, Any]) -> Any:
        at = int(params.get("page_token", 0)) + 1
        return {"contacts": [], "next_page_token": at if at <= before + length else before + 1}

    session = Recorded(answer)
    with pytest.raises(ApiError, match="again"):
        list(session.items("v2/contacts"))
    assert len(session.calls) < 4 * (before + length) + 2


def test_order_of_the_caller_is_kept() -> None:
    for url, params in (("v1/contacts?order=email", {}), ("v1/contacts", {"order": "email"})):
        session = Recorded(v1_list(0))
        list(session.items(url, **params))
        assert session.calls == [("GET", url, {"params": params})]


def test_query_of_the_url_is_sent_for_each_page() -> None:
    session = Recorded(v2_list(3, 2, {}))
    list(session.items("v2/contacts?page_token=0&fields=&a=1&a=2"))
    assert [url for _, url, _ in session.calls] == [
        "v2/contacts?page_token=0&fields=&a=1&a=2",
        "v2/contacts?fields=&a=1&a=2",
    ]


def test_pages_with_several_lists_follow_each_other() -> None:
    def answer(method: str, url: str, params: dict[str, Any]) -> Any:
        items = list(range(5))[int(params.get("offset", 0)) :][:2]
        return {"items": items, "errors": [], "next": "x"}

    session = Recorded(answer)
    assert [page["items"] for page in session.pages("v1/x")] == [[0, 1], [2, 3], [4], []]
    assert list(session.items("v1/x", key="items")) == [0, 1, 2, 3, 4]


def test_list_without_pages_is_read_once() -> None:
    session = Recorded(lambda *_: [{"key": "31"}])
    assert list(session.items("v1/hooks")) == [{"key": "31"}]
    assert len(session.calls) == 1


def test_pages_are_read_when_they_are_asked_for() -> None:
    session = Recorded(v2_list(100, 2, {}))
    pages = session.pages("v2/contacts")
    assert session.calls == []
    next(pages)
    assert len(session.calls) == 1


@pytest.mark.parametrize("page", [{"a": [], "b": []}, {"a": 1}, {}, None, "a"])
def test_list_must_be_named_when_it_is_not_the_only_one(page: Any) -> None:
    with pytest.raises(ApiError, match="key="):
        items_of(page)
    with pytest.raises(ApiError, match="key="):
        items_of(page, "c")


def test_named_list_is_yielded() -> None:
    session = Recorded(lambda *_: {"tags": [1], "others": [2, 3]})
    assert list(session.items("v2/x", key="others")) == [2, 3]


def peak_bytes(total: int) -> int:
    session = Recorded(v2_list(total, 100, {}, padding="x" * 1000))
    session.calls = Discarded()
    tracemalloc.start()
    for _ in session.items("v2/contacts"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Discarded(list[Any]):
    def append(self, each: Any) -> None:
        pass


def test_long_list_needs_no_more_memory() -> None:
    peak_bytes(200)
    assert peak_bytes(20_000) < 1.1 * peak_bytes(2000)


# Updates


def test_update_sends_each_changed_name_and_the_other_items() -> None:
    current = {"email_addresses": [{"field": "EMAIL2", "email": "b@ex.test"}]}
    session = Recorded(lambda method, *_: current if method == "GET" else {"id": "7"})
    changes = {"given_name": "N", "email_addresses": [{"field": "EMAIL1", "email": "a@ex.test"}]}
    assert session.update("v2/contacts/7", {**changes, "id": "7"}) == {"id": "7"}
    read, written = session.calls
    assert read == ("GET", "v2/contacts/7", {"params": {"fields": "email_addresses"}})
    assert written == (
        "PATCH",
        "v2/contacts/7",
        {
            "params": {"update_mask": ["given_name", "email_addresses"]},
            "json": {
                **changes,
                "email_addresses": [
                    *current["email_addresses"],
                    {"field": "EMAIL1", "email": "a@ex.test"},
                ],
            },
        },
    )


def test_update_without_collections_reads_nothing() -> None:
    session = Recorded(lambda *_: {})
    session.update("v2/contacts/7", {"given_name": "N"})
    assert [method for method, *_ in session.calls] == ["PATCH"]


# Custom fields


def model_or_contact(method: str, url: str, params: dict[str, Any]) -> Any:
    return MODEL if url.endswith("model") else {"custom_fields": [{"id": "46", "content": "9"}]}


def test_custom_fields_are_written_by_label() -> None:
    session = Recorded(model_or_contact)
    assert session.custom_fields("contacts", {"Favorite Color": "blue", "Score0": 3}) == [
        {"id": "45", "content": "blue"},
        {"id": "46", "content": 3},
    ]
    session.update("v2/contacts/7", {"custom_fields": {"Favorite Color": "red"}})
    assert session.calls[-1][2]["json"] == {
        "custom_fields": [{"id": "46", "content": "9"}, {"id": "45", "content": "red"}]
    }


def test_custom_fields_are_read_by_label() -> None:
    session = Recorded(model_or_contact)
    contact = {"custom_fields": [{"id": 45, "content": "blue"}]}
    assert session.custom_field_values("contacts", contact) == {"Favorite Color": "blue"}
    assert session.custom_field_values("contacts", {}) == {}


def test_model_is_read_once_and_again_when_a_label_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Recorded(model_or_contact)
    for _ in range(3):
        session.custom_fields("contacts", {"Score": 3})
    assert len(session.calls) == 1
    with pytest.raises(LookupError, match=r"^No custom field.*There are: Favorite Color, Score"):
        session.custom_fields("contacts", {"Colour": "blue"})
    assert len(session.calls) == 2
    session.custom_fields("orders", {"Score": 3})
    assert session.calls[-1][1] == "v2/orders/model"
    monkeypatch.setattr(custom_fields, "MAX_AGE_SECONDS", -1)
    session.custom_fields("contacts", {"Score": 3})
    assert len(session.calls) == 4


def test_model_is_not_read_for_each_object_with_an_unknown_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Recorded(model_or_contact)
    contact = {"custom_fields": [{"id": "46", "content": "9"}, {"id": "99", "content": "x"}]}
    for _ in range(3):
        assert session.custom_field_values("contacts", contact) == {"Score": "9", "99": "x"}
    assert len(session.calls) == 1
    monkeypatch.setattr(custom_fields, "RECENT_SECONDS", -1)
    session.custom_field_values("contacts", contact)
    assert len(session.calls) == 2


def test_fields_with_the_same_label_go_by_keaps_names() -> None:
    fields = [
        {"id": "1", "label": "Size", "field_name": "Size"},
        {"id": "2", "label": "Size", "field_name": "Size0"},
    ]
    session = Recorded(lambda *_: {"custom_fields": fields})
    written = session.custom_fields("contacts", {"Size": "L", "Size0": "XL"})
    assert written == [{"id": "1", "content": "L"}, {"id": "2", "content": "XL"}]
    assert session.custom_field_values("contacts", {"custom_fields": written}) == {
        "Size": "L",
        "Size0": "XL",
    }
