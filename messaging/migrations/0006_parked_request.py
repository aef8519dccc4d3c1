from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0005_external_id_attempt"),
    ]

    operations = [
        migrations.AddField(
            model_name="parkedrecord",
            name="request_id",
            field=models.CharField(max_length=128, null=True),
        ),
    ]
