"""The platform simulator: a service of its own that answers like Meta's Graph API and later calls our webhook.

It shares no code with the rest and speaks HTTP only, so that what works against it was not made to fit it.
"""
