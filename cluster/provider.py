"""Ray's provider of nodes that are processes, of which the autoscaler knows the memory, too."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class ProcessProvider(FakeMultiNodeProvider):
    """Starts a node without the memory of its type, which Ray's own takes for an unknown name.

    Ray finds the memory of each node by itself.
    """

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        known = {name: value for name, value in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, known, labels)
