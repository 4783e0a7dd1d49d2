"""Contacts in both versions of the API (keap-facts sections 4, 13 and 14)."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from .calls import (
    MAX_PAGE,
    BadRequestError,
    Call,
    MissingError,
    Operation,
    T,
    number_in,
    page_of,
)
from .contacts import WRITABLE, Contact
from .filters import matches_text, matching, moment, ordered
from .messages import Reply, json_reply

FILTERS: Mapping[str, Callable[[Contact, str], bool]] = {
    "email": lambda each, value: any(
        matches_text(str(email.get("email", "")), value)
        for email in each.fields.get("email_addresses") or []
    ),
    "given_name": lambda each, value: matches_text(each.text("given_name"), value),
    "family_name": lambda each, value: matches_text(each.text("family_name"), value),
    "ids": lambda each, value: str(each.number) in value.split(","),
    "start_update_time": lambda each, value: each.updated_at >= moment(value),
    "end_update_time": lambda each, value: each.updated_at <= moment(value),
}
ORDERS: Mapping[str, Callable[[Contact], Any]] = {
    "id": lambda each: each.number,
    "create_time": lambda each: each.created_at,
    "email": lambda each: each.email,
    "given_name": lambda each: each.text("given_name").lower(),
    "family_name": lambda each: each.text("family_name").lower(),
}
DUPLICATES: Mapping[str, tuple[str, ...]] = {
    "Email": (),
    "EmailAndName": ("given_name", "family_name"),
}
READABLE = WRITABLE | {"id", "create_time", "update_time", "tag_ids", "groups"}
# What v1 leaves out unless it is asked for (keap-facts section 14).
OPTIONAL_V1 = frozenset({"custom_fields", "job_title", "lead_source_id", "birthday", "website"})


def _list_v2(call: Call) -> Reply:
    contacts = _checked(
        lambda: matching(call.records.contacts.all(), _query(call, "filter"), FILTERS)
    )
    contacts = _checked(lambda: ordered(contacts, _query(call, "order_by"), ORDERS))
    page, token = page_of(contacts, call.query)
    only = _fields(call)
    return json_reply({"contacts": [each.as_v2(only) for each in page], "next_page_token": token})


def _get_v2(call: Call) -> Reply:
    return json_reply(_contact(call).as_v2(_fields(call)))


def _create_v2(call: Call) -> Reply:
    fields, option = call.body(), call.query.get("duplicate_option", "")
    _require_known(fields)
    if option and option not in DUPLICATES and option != "EmailAndNameAndCompany":
        raise BadRequestError(f"duplicate_option is one of {', '.join(DUPLICATES)}.")
    if found := _duplicate(call, fields, option):
        _checked(lambda: found.change(fields, now=call.now))
        return json_reply(found.as_v2(_fields(call)))
    return json_reply(_add(call, fields).as_v2(_fields(call)), status=201)


def _update_v2(call: Call) -> Reply:
    contact, fields = _contact(call), call.body()
    _require_known(fields)
    if mask := call.request.query.all("update_mask"):
        _require_known(mask)
        fields = {name: fields.get(name) for name in mask}
    _checked(lambda: contact.change(fields, now=call.now))
    return json_reply(contact.as_v2(_fields(call)))


def _delete(call: Call) -> Reply:
    call.records.contacts.delete(_contact(call).number)
    return Reply(204)


def _model_v2(call: Call) -> Reply:
    return json_reply(
        {"custom_fields": call.records.custom_fields, "optional_properties": sorted(READABLE)}
    )


def _create_custom_field_v2(call: Call) -> Reply:
    body = call.body()
    if not body.get("label") or not body.get("field_type"):
        raise BadRequestError("A custom field needs label and field_type.")
    names = {each["field_name"] for each in call.records.custom_fields}
    name = base = "".join(filter(str.isalnum, body["label"]))
    while name in names:
        name = f"{base}{len(names)}"
    field = {
        "id": str(len(names) + 1),
        "label": body["label"],
        "field_name": name,
        "field_type": body["field_type"],
        "options": body.get("options") or [],
        "record_type": "CONTACT",
    }
    call.records.custom_fields.append(field)
    return json_reply({"custom_field": field}, status=201)


def _list_v1(call: Call) -> Reply:
    query = call.request.query
    limit = number_in(query, "limit", default=MAX_PAGE, least=1, most=MAX_PAGE)
    offset = number_in(query, "offset", default=0)
    contacts = call.records.contacts.all()
    for name in ("email", "given_name", "family_name"):
        if value := query.get(name, ""):
            contacts = [each for each in contacts if FILTERS[name](each, value)]

    def page(at: int) -> str:
        # Keap sends both URLs on every page, including the last: a client stops at an
        # empty page (captures in public code; not in keap-facts).
        fields = {name: value for name, value in query.items() if name != "access_token"}
        encoded = urlencode(fields | {"limit": limit, "offset": at})
        return f"http://{call.request.host}{call.request.path}?{encoded}"

    optional = _optional_v1(call)
    return json_reply(
        {
            "contacts": [each.as_v1(optional) for each in contacts[offset : offset + limit]],
            "count": len(contacts),
            "next": page(offset + limit),
            "previous": page(max(0, offset - limit)),
        }
    )


def _get_v1(call: Call) -> Reply:
    return json_reply(_contact(call).as_v1(_optional_v1(call)))


def _create_v1(call: Call) -> Reply:
    return json_reply(_add(call, _from_v1(call)).as_v1(), status=201)


def _upsert_v1(call: Call) -> Reply:
    body = call.body()
    option = str(body.get("duplicate_option") or "")
    if option not in DUPLICATES:
        raise BadRequestError(f"duplicate_option is one of {', '.join(DUPLICATES)}.")
    fields = _from_v1(call)
    if found := _duplicate(call, fields, option):
        _checked(lambda: found.change(fields, now=call.now))
        return json_reply(found.as_v1())
    return json_reply(_add(call, fields).as_v1(), status=201)


def _update_v1(call: Call) -> Reply:
    contact = _contact(call)
    _checked(lambda: contact.change(_from_v1(call), now=call.now))
    return json_reply(contact.as_v1())


def _contact(call: Call) -> Contact:
    if found := call.records.contacts.get(call.number):
        return found
    raise MissingError("Contact", call.number)


def _add(call: Call, fields: Mapping[str, Any]) -> Contact:
    contacts = call.records.contacts
    return _checked(
        lambda: contacts.add(lambda number: Contact.made_of(fields, number=number, now=call.now))
    )


def _duplicate(call: Call, fields: Mapping[str, Any], option: str) -> Contact | None:
    """Return the first contact with the same address: case-blind, the lowest id wins.

    Nobody knows what Keap does here (keap-facts section 14). A company never matches.
    """
    if option not in DUPLICATES:
        return None
    new = _checked(lambda: Contact.made_of(fields, number=0, now=call.now))
    for each in call.records.contacts.all():
        is_same = all(each.text(name) == new.text(name) for name in DUPLICATES[option])
        if new.email and each.email == new.email and is_same:
            return each
    return None


def _from_v1(call: Call) -> dict[str, Any]:
    """Return the body's properties by their names in v2.

    :raises BadRequestError: a property is unknown or read-only (keap-facts section 14).
    """
    renamed = {"lead_source_id": "leadsource_id", "birthday": "birth_date"}
    fields = {}
    for name, value in call.body().items():
        if name == "tag_ids":
            raise BadRequestError("Tags can't be added or removed through this object")
        if name in ("duplicate_option", "opt_in_reason", "id"):
            continue
        v2_name = renamed.get(name, name)
        if v2_name not in WRITABLE:
            raise BadRequestError(f"Unrecognized property: {name}")
        fields[v2_name] = value
    return fields


def _require_known(names: Any) -> None:
    for name in names:
        if name not in WRITABLE:
            raise BadRequestError(f"Unrecognized or read-only property: {name}")


def _query(call: Call, name: str) -> str:
    return call.query.get(name, "")


def _fields(call: Call) -> list[str]:
    names = [each for each in _query(call, "fields").split(",") if each]
    for name in names:
        if name not in READABLE:
            raise BadRequestError(f"fields: there is no {name}.")
    return [*names, "id"] if names else []


def _optional_v1(call: Call) -> list[str]:
    names = [each for each in _query(call, "optional_properties").split(",") if each]
    for name in names:
        if name not in OPTIONAL_V1:
            raise BadRequestError(f"Unrecognized optional property: {name}")
    return names


def _checked(function: Callable[[], T]) -> T:
    try:
        return function()
    except ValueError as error:
        raise BadRequestError(str(error)) from None


PAGING = frozenset({"filter", "order_by", "fields", "page_size", "page_token"})
PAGING_V1 = frozenset(
    {"limit", "offset", "order", "email", "given_name", "family_name", "optional_properties"}
)
FIELDS = frozenset({"fields"})
OPERATIONS = (
    Operation("GET", "v2/contacts", _list_v2, PAGING),
    Operation("POST", "v2/contacts", _create_v2, FIELDS | {"duplicate_option"}),
    Operation("GET", "v2/contacts/model", _model_v2),
    Operation("POST", "v2/contacts/model/customFields", _create_custom_field_v2),
    Operation("GET", "v2/contacts/{contact_id}", _get_v2, FIELDS),
    Operation("PATCH", "v2/contacts/{contact_id}", _update_v2, FIELDS | {"update_mask"}),
    Operation("DELETE", "v2/contacts/{contact_id}", _delete),
    Operation("GET", "v1/contacts", _list_v1, PAGING_V1),
    Operation("POST", "v1/contacts", _create_v1),
    Operation("PUT", "v1/contacts", _upsert_v1),
    Operation("GET", "v1/contacts/{contact_id}", _get_v1, frozenset({"optional_properties"})),
    Operation("PATCH", "v1/contacts/{contact_id}", _update_v1),
    Operation("DELETE", "v1/contacts/{contact_id}", _delete),
)
