"""Serializers that take what is documented and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError


class TextField(serializers.CharField):
    """A string: a number or boolean is refused, where CharField would write it out. NUL is refused by CharField."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields it does not know (code ``unknown_field``) and NUL characters anywhere, also in free-form JSON, but
    for fields in ``checked_apart``, whose parts somebody checks one by one."""

    checked_apart: ClassVar[Collection[str]] = ()

    def to_internal_value(self, data: Any) -> Any:
        faults = self._faults(data) if isinstance(data, Mapping) else {}
        try:
            value = super().to_internal_value(data)
        except ValidationError as error:
            raise ValidationError({**_details(error), **faults}) from None
        if faults:
            raise ValidationError(faults)
        return value

    def _faults(self, data: Mapping[str, Any]) -> dict[str, list[ErrorDetail]]:
        faults = {}
        for name, value in data.items():
            if name not in self.fields:
                faults[str(name)[:64]] = [ErrorDetail("There is no such field.", code="unknown_field")]
            elif name not in self.checked_apart and not isinstance(value, str) and _has_nul(value):
                faults[name] = [ErrorDetail("Null characters are not allowed.", code="null_characters_not_allowed")]
        return faults


def parsed(kind: type[StrictSerializer], data: object) -> dict[str, Any]:
    """The values in ``data`` as ``kind`` describes them. Raises ValidationError."""
    try:
        values: dict[str, Any] = _checker(kind).run_validation(data)
    except ValidationError as error:
        raise ValidationError(_details(error)) from None
    return values


@functools.cache
def _checker(kind: type[StrictSerializer]) -> StrictSerializer:
    """One for all requests: checking leaves nothing in it, and making its fields anew costs more than the checks."""
    return kind()


def _details(error: ValidationError) -> dict[str, Any]:
    return error.detail if isinstance(error.detail, dict) else {"non_field_errors": error.detail}


def _has_nul(value: Any) -> bool:
    """Strings of the top level are CharField's to refuse; these are those inside lists and objects, however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            if "\x00" in each:
                return True
        elif isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            left += each
    return False
