"""What goes wrong with point clouds and their files."""


class PointCloudError(ValueError):
    """A point cloud whose content makes no sense, such as no points or NaN coordinates."""


class PointCloudFileError(PointCloudError):
    """A file that cannot be read as a point cloud; the text names the file, what was seen and what is allowed."""
