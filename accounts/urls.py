"""Addresses of the accounts API, from the root."""

from __future__ import annotations

from django.urls import path

from accounts import views

urlpatterns = [
    path("auth/register", views.RegisterView.as_view(), name="register"),
    path("auth/token", views.TokenView.as_view(), name="token"),
    path("auth/token/refresh", views.RefreshView.as_view(), name="token-refresh"),
    path("auth/logout", views.LogoutView.as_view(), name="logout"),
    path(".well-known/jwks.json", views.JwksView.as_view(), name="jwks"),
    path("v1/users", views.UsersView.as_view(), name="users"),
    path("v1/users/me", views.MeView.as_view(), name="me"),
]
