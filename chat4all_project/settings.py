"""Settings for both profiles: the environment alone decides, see docs/configuration.md."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from django.core.exceptions import ImproperlyConfigured

from chat4all_project.env import (
    allowed_hosts,
    env,
    is_production,
    jwt_private_key,
    old_secrets,
    public_url,
    refuse_equal,
    secret,
    state_dir,
)
from chat4all_project.parts import database, file_storage
from core import metrics
from messaging import topics

PRODUCTION = is_production()
STATE_DIR = state_dir()

SECRET_KEY = secret("SECRET_KEY", production=PRODUCTION)
CHANNEL_SECRETS_KEY = secret("CHANNEL_SECRETS_KEY", production=PRODUCTION)  # encrypts channel accounts' credentials
CHANNEL_SECRETS_OLD_KEYS = old_secrets("CHANNEL_SECRETS_OLD_KEYS", production=PRODUCTION)  # read, never written with
refuse_equal(SECRET_KEY=SECRET_KEY, CHANNEL_SECRETS_KEY=CHANNEL_SECRETS_KEY)
DEBUG = env.bool("DEBUG", default=False)
if PRODUCTION and DEBUG:
    raise ImproperlyConfigured("DEBUG must be off in production. Hint: unset DEBUG")
if PRODUCTION and env.str("FAILPOINTS", default=""):
    raise ImproperlyConfigured("FAILPOINTS ends processes on purpose, never in production. Hint: unset FAILPOINTS")
ALLOWED_HOSTS = allowed_hosts(production=PRODUCTION)
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

# --- parts, by URL -----------------------------------------------------------------------------------------------
EVENT_LOG_URL = env.str("EVENT_LOG_URL", default="redis://127.0.0.1:8091/0")
MESSAGE_STORE_URL = env.str("MESSAGE_STORE_URL", default="orm://messages")
BUS_URL = env.str("BUS_URL", default="redis://127.0.0.1:8092/0")  # broker, channel layer, leases, hints: may be flushed
# As clients and platforms reach us.
API_URL = public_url("API_URL", local="http://127.0.0.1:8082", scheme="https", production=PRODUCTION)
GATEWAY_URL = public_url("GATEWAY_URL", local="ws://127.0.0.1:8085", scheme="wss", production=PRODUCTION)
PARTITIONS = env.int("PARTITIONS", default=3)
LANES = env.int("LANES", default=1)
if not 1 <= LANES <= 16:
    raise ImproperlyConfigured("LANES is 1 to 16: batches of a partition that may be at work at once. Hint: LANES=1")
GATHER_MS = env.int("GATHER_MS", default=10)
if not 0 <= GATHER_MS <= 1000:
    raise ImproperlyConfigured("GATHER_MS is 0 to 1000: how long a lane gathers after a batch. Hint: GATHER_MS=10")
LOG_PARTITION_BYTES = env.int("LOG_PARTITION_BYTES", default=64 * 1024 * 1024)
RETENTION_DAYS = env.int("RETENTION_DAYS", default=topics.RETENTION.days)
if not 1 <= RETENTION_DAYS <= topics.MAX_RETENTION.days:
    raise ImproperlyConfigured(
        f"RETENTION_DAYS is 1 to {topics.MAX_RETENTION.days}: what keeps a record from being sent twice is kept so "
        f"long. Hint: RETENTION_DAYS={topics.RETENTION.days}"
    )
APPEND_TIMEOUT_S = env.float("APPEND_TIMEOUT_S", default=5.0)
STORE_TIMEOUT_S = env.float("STORE_TIMEOUT_S", default=5.0)

DATABASES = {
    "default": database(env.str("DATABASE_URL", default=f"sqlite:///{STATE_DIR}/accounts.sqlite3")),
    "messages": database(env.str("MESSAGES_DATABASE_URL", default=f"sqlite:///{STATE_DIR}/messages.sqlite3")),
}
DATABASE_ROUTERS = ["messaging.stores.router.MessagesRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

STORAGES = {
    "default": file_storage(env.str("FILES_URL", default=(STATE_DIR / "files").as_uri())),
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
FILES_CORS_ORIGINS = env.list("FILES_CORS_ORIGINS", default=[])  # for setup_storage
MAX_FILE_BYTES = env.int("MAX_FILE_BYTES", default=2 * 1024**3)
USER_FILES_BYTES = env.int("USER_FILES_BYTES", default=10 * 1024**3)  # all files of one user together
# Uploads wait here until they are whole; on the disk of the files, so that keeping one is a rename (/tmp is often RAM).
UPLOAD_TEMP_DIR = env.str("UPLOAD_TEMP_DIR", default=str(STATE_DIR / "incoming"))

# --- Django ------------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_prometheus",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "core",
    "accounts",
    "files",
    "realtime",
    "messaging",
    "web",
]
MIDDLEWARE = [
    "core.middleware.RequestIdMiddleware",
    "core.middleware.ProbesMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "core.middleware.AdminSessions",
    "django.middleware.common.CommonMiddleware",
    "core.middleware.AdminCsrf",
    "core.middleware.AdminUsers",
    "core.middleware.AdminMessages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "core.middleware.MetricsMiddleware",
]
CSRF_FAILURE_VIEW = "core.problems.csrf_failure"
ROOT_URLCONF = "chat4all_project.urls"
WSGI_APPLICATION = "chat4all_project.wsgi.application"
ASGI_APPLICATION = "chat4all_project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", default="/srv/static" if PRODUCTION else str(STATE_DIR / "static")))
if not PRODUCTION:
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # WhiteNoise warns where there is none; finders serve the files
WHITENOISE_USE_FINDERS = not PRODUCTION
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
APPEND_SLASH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # a JSON body; files stream through their own handlers

SECURE_CONTENT_TYPE_NOSNIFF = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PRODUCTION
BEHIND_TLS_PROXY = env.bool("BEHIND_TLS_PROXY", default=False)
TRUSTED_PROXIES = env.int("TRUSTED_PROXIES", default=0)  # how many of ours append to X-Forwarded-For
if PRODUCTION and BEHIND_TLS_PROXY and TRUSTED_PROXIES < 1:  # the limits on guessing would count everybody as one
    raise ImproperlyConfigured("BEHIND_TLS_PROXY needs the number of proxies. Hint: TRUSTED_PROXIES=1")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_TLS_PROXY else None
SECURE_SSL_REDIRECT = PRODUCTION and env.bool("SECURE_SSL_REDIRECT", default=True)
SECURE_HSTS_SECONDS = 31_536_000 if PRODUCTION else 0
# For a year and for names that are not ours to decide about: only on request.
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("HSTS_INCLUDE_SUBDOMAINS", default=False)
SECURE_HSTS_PRELOAD = env.bool("HSTS_PRELOAD", default=False)

# --- accounts ----------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
LOGIN_REDIRECT_URL = "admin:index"
AUTHENTICATION_BACKENDS = ["accounts.backends.WorkspaceBackend"]
PASSWORD_HASHERS = ["accounts.hashers.Argon2id"]
SILENCED_SYSTEM_CHECKS = [
    "auth.W004",  # names are unique per workspace, and WorkspaceBackend knows
    "security.W003",  # it knows Django's own CSRF middleware by its path alone; ours is that one, for the admin
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
_JWT_KEY = jwt_private_key(production=PRODUCTION)
SIMPLE_JWT: dict[str, Any] = {
    "ALGORITHM": "RS256",
    "SIGNING_KEY": _JWT_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode(),
    "VERIFYING_KEY": _JWT_KEY.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode(),
    "ISSUER": "chat4all",
    "ACCESS_TOKEN_LIFETIME": timedelta(hours=1),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=14),
    "USER_ID_FIELD": "public_id",
    "USER_ID_CLAIM": "sub",
}
# Against guessing: failures within the window, then 429 until it ends. An address may be a whole office behind NAT.
# A user is kept out where the guesses come from; from everywhere only when somebody has very many addresses.
LOGIN_WINDOW_S = env.int("LOGIN_WINDOW_S", default=900)
LOGIN_FAILURES_PER_USER = env.int("LOGIN_FAILURES_PER_USER", default=10)
LOGIN_FAILURES_PER_USER_EVERYWHERE = env.int("LOGIN_FAILURES_PER_USER_EVERYWHERE", default=1_000)
LOGIN_FAILURES_PER_ADDRESS = env.int("LOGIN_FAILURES_PER_ADDRESS", default=100)
REGISTRATIONS_PER_ADDRESS = env.int("REGISTRATIONS_PER_ADDRESS", default=1_000 if PRODUCTION else 100_000)  # an hour

# --- REST --------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["core.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "core.negotiation.JsonFirst",
    "DEFAULT_PARSER_CLASSES": ["core.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "core.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Chat4All",
    "DESCRIPTION": "Post a message once; it reaches users live and people on WhatsApp, Instagram and more.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "core.schema.with_problems"],
    "ENUM_NAME_OVERRIDES": {
        "MessageStatus": "messaging.api.serializers.STATUSES",
        "Accepted": "messaging.api.serializers.ACCEPTED",
        "Read": "messaging.api.serializers.READ",
    },
}

# --- live and background -----------------------------------------------------------------------------------------
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [BUS_URL], "prefix": "chat4all", "serializer_format": "json"},
    }
}
CELERY_BROKER_URL = BUS_URL
# Told nothing, Kombu takes any certificate; redis-py, by which all else speaks to the bus, does not. What the URL says
# stands in place of this, and then certificates are checked as well.
CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": "required"} if BUS_URL.startswith("rediss://") else None
TASK_APP = "chat4all_project.celery.app"

# What the world may not see: parts, versions, counts. On ports of their own they are always answered.
PUBLIC_PROBES = env.bool("PUBLIC_PROBES", default=not PRODUCTION)  # /ready and /metrics on the API's and gateway's port
HEALTH_HOST = env.str("HEALTH_HOST", default="127.0.0.1")
API_HEALTH_PORT = env.int("API_HEALTH_PORT", default=0)
LOGGING_CONFIG = "core.logging.configure"
LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOGGING = {"level": LOG_LEVEL, "service": env.str("SERVICE", default="manage")}
if PROMETHEUS_MULTIPROC_DIR := env.str("PROMETHEUS_MULTIPROC_DIR", default=""):
    metrics.share(Path(PROMETHEUS_MULTIPROC_DIR))  # before the apps are loaded, and with them the first metric
PROMETHEUS_EXPORT_MIGRATIONS = False
PROMETHEUS_LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, float("inf"),
)  # fmt: skip
