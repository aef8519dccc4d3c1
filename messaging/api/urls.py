"""The product's addresses."""

from __future__ import annotations

from django.urls import path

from messaging.api import dead_letters, views, webhooks

urlpatterns = [
    path("v1/messages", views.MessagesView.as_view(), name="messages"),
    path("v1/messages/batch", views.MessageBatchView.as_view(), name="message-batch"),
    path("v1/messages/<str:message_id>", views.MessageView.as_view(), name="message"),
    path("v1/messages/<str:message_id>/read", views.MessageReadView.as_view(), name="message-read"),
    path("v1/conversations", views.ConversationsView.as_view(), name="conversations"),
    path("v1/conversations/<str:conversation_id>", views.ConversationView.as_view(), name="conversation"),
    path("v1/conversations/<str:conversation_id>/messages", views.HistoryView.as_view(), name="history"),
    path("v1/conversations/<str:conversation_id>/members", views.MembersView.as_view(), name="members"),
    path("v1/conversations/<str:conversation_id>/members/<str:member_id>", views.MemberView.as_view(), name="member"),
    path("v1/operator/dead-letters", dead_letters.DeadLettersView.as_view(), name="dead-letters"),
    path("v1/operator/dead-letters/replay", dead_letters.ReplayView.as_view(), name="dead-letters-replay"),
    path("webhooks/<str:channel>/<str:account>", webhooks.WebhookView.as_view(), name="webhook"),
]
