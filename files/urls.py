from django.urls import path

from files.views import DownloadView, FilesView, FileView, RawFileView

urlpatterns = [
    path("v1/files", FilesView.as_view(), name="files"),
    path("v1/files/<str:file_id>", FileView.as_view(), name="file"),
    path("v1/files/<str:file_id>/download", DownloadView.as_view(), name="file-download"),
    path("files/raw/<str:file_id>", RawFileView.as_view(), name="file-raw"),
]
