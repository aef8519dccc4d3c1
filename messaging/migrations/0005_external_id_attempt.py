from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0004_replayed_letter"),
    ]

    operations = [
        migrations.AddField(
            model_name="externalid",
            name="attempt",
            field=models.SmallIntegerField(db_default=0),
        ),
    ]
