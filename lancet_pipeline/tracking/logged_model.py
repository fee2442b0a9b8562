"""A registration in MLflow's own types."""

import math
import time
from pathlib import Path
from typing import Any

from lancet_pipeline.tracking.registration import DataSet, Registration


def components(folder: Path) -> dict[str, Any]:
    """The loaded model: MLflow 3.17 takes a folder as it is only with transformers before 5."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        "model": AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }


def data_set(data: DataSet) -> Any:
    """MLflow's entry for a data set: where it is, and the version of its content."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    origin = data.source
    if origin.hub:
        source = HuggingFaceDatasetSource(
            origin.hub, config_name=origin.subset, split=origin.part, revision=origin.revision
        )
    elif origin.path:
        source = resolve_dataset_source(Path(origin.path).as_uri())
    else:
        source = CodeDatasetSource({"builtin": str(origin.builtin), "part": str(origin.part)})
    return MetaDataset(source, name=data.name, digest=data.digest)


def model_metrics(entry: Registration, model_id: str) -> list[Any]:
    from mlflow.entities import Metric

    digests = {data.name: data.digest for data in entry.data}
    stamp = int(time.time() * 1000)
    return [
        Metric(name, value, stamp, 0, model_id, data, digests[data] if data else None)
        for name, (value, data) in entry.metrics.items()
        if math.isfinite(value)
    ]
