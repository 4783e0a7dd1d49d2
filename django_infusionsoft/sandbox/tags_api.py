"""Tags in both versions of the API (keap-facts sections 4 and 14)."""

from collections.abc import Mapping
from typing import Any

from .calls import BadRequestError, Call, MissingError, Operation, page_of
from .contacts import Contact
from .filters import matches_text, matching
from .messages import Reply, json_reply
from .tags import MAX_NAME, Tag, TagCategory

# v1's limit of one call (keap-facts section 14).
MAX_TAGS = 100
# The words of Keap are not published: these are those of a neighbouring operation.
APPLIED, MISSING, ALREADY = "SUCCESS", "CONTACT_DOES_NOT_EXIST", "ALREADY_APPLIED"


def _list(call: Call) -> Reply:
    filters = {
        "name": lambda each, value: matches_text(each.name, value),
        "category_id": lambda each, value: value == str(each.category or "NONE"),
    }
    try:
        tags = matching(call.records.tags.all(), call.query.get("filter", ""), filters)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    page, token = page_of(tags, call.query)
    return json_reply({"tags": [each.as_v2() for each in page], "next_page_token": token})


def _create(call: Call) -> Reply:
    body = call.body()
    name = _name(body)
    category = str((body.get("category") or {}).get("id") or "")
    if category and not (category.isdecimal() and call.records.categories.get(int(category))):
        raise BadRequestError(f"There is no tag category {category}.")
    tag = call.records.tags.add(
        lambda number: Tag(
            number,
            call.now,
            name,
            str(body.get("description") or ""),
            int(category) if category else None,
        )
    )
    return json_reply(tag.as_v2(), status=201)


def _get(call: Call) -> Reply:
    return json_reply(_tag(call).as_v2())


def _delete(call: Call) -> Reply:
    call.records.tags.delete(_tag(call).number)
    for contact in call.records.contacts.all():
        if call.number in contact.tag_ids:
            contact.tag_ids.remove(call.number)
    return Reply(204)


def _list_categories(call: Call) -> Reply:
    page, token = page_of(call.records.categories.all(), call.query)
    found = [each.as_v2() for each in page]
    return json_reply({"tag_categories": found, "next_page_token": token})


def _create_category(call: Call) -> Reply:
    body = call.body()
    name, description = _name(body), str(body.get("description") or "")
    category = call.records.categories.add(lambda number: TagCategory(number, name, description))
    return json_reply(category.as_v2(), status=201)


def _get_category(call: Call) -> Reply:
    if found := call.records.categories.get(call.number):
        return json_reply(found.as_v2())
    raise MissingError("TagCategory", call.number)


def _list_contacts(call: Call) -> Reply:
    tag = _tag(call)
    contacts = [each for each in call.records.contacts.all() if tag.number in each.tag_ids]
    page, token = page_of(contacts, call.query)
    return json_reply(
        {
            "contacts": [
                {"id": str(each.number), "email": each.email, **_names(each)} for each in page
            ],
            "next_page_token": token,
        }
    )


def _apply(call: Call) -> Reply:
    """A 200, even if some contacts failed (keap-facts section 14)."""
    tag = _tag(call)
    return json_reply({"results": {each: _apply_to(call, each, tag) for each in _ids(call)}})


def _apply_to(call: Call, text: str, tag: Tag) -> str:
    contact = call.records.contacts.get(int(text)) if text.isdecimal() else None
    if contact is None:
        return MISSING
    if tag.number in contact.tag_ids:
        return ALREADY
    contact.tag_ids.append(tag.number)
    contact.updated_at = call.now
    return APPLIED


def _remove(call: Call) -> Reply:
    tag = _tag(call)
    for text in _ids(call):
        contact = call.records.contacts.get(int(text)) if text.isdecimal() else None
        if contact is not None and tag.number in contact.tag_ids:
            contact.tag_ids.remove(tag.number)
    return Reply(204)


def _apply_v1(call: Call) -> Reply:
    contact, numbers = _contact(call), call.body().get("tagIds")
    if not isinstance(numbers, list) or not 0 < len(numbers) <= MAX_TAGS:
        raise BadRequestError(f"tagIds is a list of 1 to {MAX_TAGS} tags.")
    results = {}
    for number in numbers:
        tag = call.records.tags.get(number) if isinstance(number, int) else None
        if tag is not None and number not in contact.tag_ids:
            contact.tag_ids.append(number)
        results[str(number)] = "SUCCESS" if tag is not None else "FAILURE"
    return json_reply(results)


def _remove_v1(call: Call) -> Reply:
    contact = _contact(call)
    for text in call.query.get("ids", "").split(","):
        if text.isdecimal() and int(text) in contact.tag_ids:
            contact.tag_ids.remove(int(text))
    return Reply(204)


def _tag(call: Call) -> Tag:
    if found := call.records.tags.get(call.number):
        return found
    raise MissingError("Tag", call.number)


def _contact(call: Call) -> Contact:
    if found := call.records.contacts.get(call.number):
        return found
    raise MissingError("Contact", call.number)


def _ids(call: Call) -> list[str]:
    found = call.body().get("contact_ids")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadRequestError("contact_ids is a list of strings.")
    return found


def _name(body: Mapping[str, Any]) -> str:
    name = body.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequestError("A name is needed.")
    return name[:MAX_NAME]


def _names(contact: Contact) -> dict[str, str]:
    names = ("given_name", "family_name")
    return {name: contact.text(name) for name in names if contact.text(name)}


PAGING = frozenset({"filter", "page_size", "page_token"})
OPERATIONS = (
    Operation("GET", "v2/tags", _list, PAGING),
    Operation("POST", "v2/tags", _create),
    Operation("GET", "v2/tags/categories", _list_categories, PAGING - {"filter"}),
    Operation("POST", "v2/tags/categories", _create_category),
    Operation("GET", "v2/tags/categories/{tag_category_id}", _get_category),
    Operation("GET", "v2/tags/{tag_id}", _get),
    Operation("DELETE", "v2/tags/{tag_id}", _delete),
    Operation("GET", "v2/tags/{tag_id}/contacts", _list_contacts, PAGING - {"filter"}),
    Operation("POST", "v2/tags/{tag_id}/contacts:applyTags", _apply),
    Operation("POST", "v2/tags/{tag_id}/contacts:removeTags", _remove),
    Operation("POST", "v1/contacts/{contact_id}/tags", _apply_v1),
    Operation("DELETE", "v1/contacts/{contact_id}/tags", _remove_v1, frozenset({"ids"})),
)
