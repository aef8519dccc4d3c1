from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_default_workspace"),
        ("files", "0001_initial"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="storedfile",
            index=models.Index(fields=["workspace", "uploader_id"], name="files_by_uploader"),
        ),
        migrations.AddIndex(
            model_name="storedfile",
            index=models.Index(fields=["state", "created_at_ms"], name="files_by_age"),
        ),
    ]
