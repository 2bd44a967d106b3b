"""Settings of attributions: the column whose images are judged together."""

import pytest

from manifpt.attribution.crawl.settings import AttributionSettings
from manifpt.errors import ManifptError


def test_the_column_of_groups_travels_with_the_images():
    assert AttributionSettings(group_by="site").with_columns().reading.columns == ("site",)
    assert AttributionSettings(group_by="folder").with_columns().reading.columns == ()


@pytest.mark.parametrize("column", ["error", "message"])
def test_columns_of_images_that_failed_make_no_groups(column):
    with pytest.raises(ManifptError, match=f"--group-by {column}: only images that failed"):
        AttributionSettings(group_by=column).with_columns()
