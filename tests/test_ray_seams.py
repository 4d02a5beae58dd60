"""What we use of Ray's private parts is what it was in the version that we tested: each name that moved is told.

Only the files in `tests/test_layout.py: MAY_NAME_PRIVATE` use them. Read this before `ray` is raised in pyproject.toml.
"""

import importlib
import inspect
from typing import Any, NamedTuple

import pytest

from tests.test_layout import PRIVATE, files, imports


class Seam(NamedTuple):
    """A private name."""

    place: str
    """Module and name."""
    parameters: str | None
    """Of a function; `None` where only the name counts."""
    instead: str
    """What would replace it."""


TRAIN = "ray.train.v2._internal.execution"
GROUP = f"{TRAIN}.worker_group.worker_group:WorkerGroup"
SCALING = f"{TRAIN}.scaling_policy:ScalingPolicy"
OWN_GROUP = "Ray Train with processes of its own, 15 s slower at the start; later a public way to bring workers."
OWN_POLICY = "ScalingConfig and FailureConfig, with Ray Train deciding when to begin again."
KEYS = "a detached actor that holds a dictionary."
STATE = "ray.util.state, which asks the dashboard, slower by a hundred times."
TOKEN = "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH, set before Ray is imported."

SEAMS = (
    Seam("ray._private.ray_constants:ENABLE_RAY_CLUSTER", None, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER before the import."),
    Seam("ray._private.ray_constants:WORKER_PROCESS_SETUP_HOOK_ENV_VAR", None, "leaving it out of the workers' key."),
    Seam("ray._raylet:Config.initialize", "config_list", TOKEN),
    Seam("ray._raylet:AuthenticationTokenLoader.instance", "", TOKEN),
    Seam("ray._raylet:AuthenticationTokenLoader.reset_cache", "self", TOKEN),
    Seam("ray._raylet:AuthenticationTokenLoader.get_token_for_http_header", "self ignore_auth_mode", TOKEN),
    Seam("ray._raylet:GcsClient", None, "the command `ray drain-node`."),
    Seam("ray.core.generated.autoscaler_pb2:DRAIN_NODE_REASON_PREEMPTION", None, "the command `ray drain-node`."),
    Seam("ray.core.generated.gcs_service_pb2:CheckAliveRequest", None, "the command `ray health-check`."),
    Seam(
        "ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceStub", "channel", "the command `ray health-check`."
    ),
    Seam("ray._private.state:actors", "actor_id job_id actor_state_name", STATE),
    Seam("ray._private.state:jobs", "", STATE),
    Seam("ray._private.state:available_resources_per_node", "", STATE),
    Seam("ray._private.state:state.get_draining_nodes", "", STATE),
    Seam("ray.experimental.internal_kv:_internal_kv_put", "key value overwrite namespace", KEYS),
    Seam("ray.experimental.internal_kv:_internal_kv_get", "key namespace", KEYS),
    Seam("ray.experimental.internal_kv:_internal_kv_exists", "key namespace", KEYS),
    Seam("ray.experimental.internal_kv:_internal_kv_del", "key del_by_prefix namespace", KEYS),
    Seam("ray.train.v2._internal.callbacks.backend_setup:BackendSetupCallback", "backend_config", OWN_GROUP),
    Seam(
        f"{TRAIN}.controller.controller:TrainController",
        "train_fn_ref train_run_context scaling_policy failure_policy callbacks validation_config",
        OWN_GROUP,
    ),
    Seam(f"{TRAIN}.controller.controller:TrainController.run", "self", OWN_GROUP),
    Seam(f"{TRAIN}.controller.controller:TrainController.get_result", "self", OWN_GROUP),
    Seam(f"{TRAIN}.controller.controller:TrainController.worker_group_cls", None, OWN_GROUP),
    Seam(f"{TRAIN}.failure_handling:FailureDecision.RAISE", None, OWN_POLICY),
    Seam(f"{TRAIN}.failure_handling:FailurePolicy.make_decision", "self training_failed_error", OWN_POLICY),
    Seam(f"{SCALING}.make_decision_for_non_running_worker_group", "self", OWN_POLICY),
    Seam(
        f"{SCALING}.make_decision_for_running_worker_group",
        "self worker_group_state worker_group_status",
        OWN_POLICY,
    ),
    Seam(f"{SCALING}.after_controller_start", "self train_run_context", OWN_POLICY),
    Seam(f"{SCALING}._get_num_workers_for_resource_request", "self", OWN_POLICY),
    Seam(f"{TRAIN}.scaling_policy:ResizeDecision", "num_workers resources_per_worker", OWN_POLICY),
    Seam(f"{TRAIN}.scaling_policy:NoopDecision", "", OWN_POLICY),
    Seam(f"{TRAIN}.worker_group.placement_group_handle:DefaultPlacementGroupHandle.shutdown", "self", OWN_GROUP),
    Seam(
        f"{TRAIN}.worker_group.worker:Worker",
        "actor metadata resources distributed_context log_file_path placement_group_bundle_index",
        OWN_GROUP,
    ),
    Seam(f"{TRAIN}.worker_group.worker:RayTrainWorker.get_metadata", "self", OWN_GROUP),
    Seam(f"{TRAIN}.worker_group.worker:RayTrainWorker.run_train_fn", "self train_fn_ref", OWN_GROUP),
    Seam(f"{TRAIN}.worker_group.worker:RayTrainWorker.poll_status", "self", OWN_GROUP),
    Seam(f"{GROUP}._create_placement_group", "self scaling_config worker_group_context", OWN_GROUP),
    Seam(f"{GROUP}._init_train_context_on_workers", "self workers sync_actor train_context_args", OWN_GROUP),
    Seam(f"{GROUP}._start", "self", OWN_GROUP),
    Seam(f"{GROUP}._clear_state", "self", OWN_GROUP),
    Seam(f"{GROUP}.poll_status", "self timeout", OWN_GROUP),
    Seam(f"{GROUP}.shutdown", "self", OWN_GROUP),
    Seam("ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks", "self", OWN_GROUP),
    Seam("ray.serve._private.replica:add_port_to_grpc_server", "server address", "a setting of Serve for the address."),
    Seam("ray._common.tls_utils:add_port_to_grpc_server", "server address", "a setting of Serve for the address."),
)


def found(place: str) -> Any:
    """The object of that name."""
    name, _, attributes = place.partition(":")
    value: Any = importlib.import_module(name)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    return value


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.place)
def test_a_private_name_of_ray_is_where_it_was(seam: Seam) -> None:
    try:
        value = found(seam.place)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{seam.place} has moved ({error}). Instead: {seam.instead}")
    if seam.parameters is not None:
        here = " ".join(inspect.signature(value).parameters)
        assert here == seam.parameters, f"{seam.place} takes other arguments. Instead: {seam.instead}"


def test_every_private_module_that_is_imported_is_watched() -> None:
    watched = {seam.place.partition(":")[0] for seam in SEAMS}
    private = {name for file in files() for name in imports(file) if name.startswith("ray") and PRIVATE.search(name)}
    assert {f"{TRAIN}.controller.controller", "ray._raylet"} <= watched
    assert [name for name in private if not any(same_branch(name, place) for place in watched)] == []


def same_branch(name: str, place: str) -> bool:
    """Whether one of two modules, or of their names, is in the other."""
    return f"{name}.".startswith(f"{place}.") or f"{place}.".startswith(f"{name}.")
