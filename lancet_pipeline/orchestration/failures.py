"""What failed in a run, as a person should read it."""

from lancet_pipeline.config.environment import Deployment
from lancet_pipeline.errors import InputError, LancetError
from lancet_pipeline.orchestration.servers import lost_server

KINDS = {"InputError": InputError, "Busy": InputError, "LancetError": LancetError, "IntegrityError": LancetError}
STOPPED = "DagsterExecutionInterruptedError"


def cause_of(result, where: Deployment) -> LancetError:
    """The first failed asset's own error, as a person should read it. Raises KeyboardInterrupt where the run was stopped."""
    for event in result.all_events:
        if event.is_step_failure:
            if STOPPED in event.step_failure_data.error.to_string():
                raise KeyboardInterrupt
            return readable_error(event, where)
    return LancetError("the run failed before any asset started; see the log above")


def readable_error(event, where: Deployment | None = None) -> LancetError:
    """The error of a failed step, as a person should read it.

    Args:
        where: whose servers are named where one of them went away.
    """
    error = event.step_failure_data.error
    while error.cause is not None:
        error = error.cause
    message = error.message.strip()
    if STOPPED in message:  # a person or a supervisor stopped it: no asset is to blame
        return LancetError(f"{event.step_key}: the run was stopped")
    name, _, text = message.partition(": ")
    short = name.rpartition(".")[2]
    if short in KINDS:
        return KINDS[short](f"{event.step_key}: {text}")
    if where is not None and (lost := lost_server(where, message)) is not None:
        return lost
    return LancetError(f"{event.step_key} failed: {message}\n{''.join(error.stack[-3:])}")
