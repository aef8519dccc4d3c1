"""The workspace that a user of the plain API never has to name."""

from uuid import UUID

from django.db import migrations


def create_default(apps, schema_editor):
    apps.get_model("accounts", "Workspace").objects.using(schema_editor.connection.alias).get_or_create(
        id=UUID("0192f0c1-a000-7000-8000-000000000001"),
        defaults={"slug": "default", "name": "Default", "open_registration": True},
    )


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [migrations.RunPython(create_default, migrations.RunPython.noop)]
