"""Reading what is installed."""

from __future__ import annotations

from bench import footprint

COMPILED = """\
amqp==5.4.2 \\
    --hash=sha256:9362
    # via kombu
django-storages[s3]==1.14.6 \\
    --hash=sha256:11
    # via -r requirements/base.in
uvloop==0.22.1 ; sys_platform != 'win32' \\
    --hash=sha256:22
"""


def test_the_names_in_a_compiled_file_are_found() -> None:
    assert footprint.pinned(COMPILED) == ["amqp", "django-storages", "uvloop"]


def test_what_production_installs_has_a_size() -> None:
    figure = footprint.installed()
    assert float(figure.value.split()[0]) > 50
