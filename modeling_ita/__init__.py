"""ITA: named entities in posts with images (Wang et al., NAACL 2022), the part that travels to the Hub.

Importing it registers `ItaConfig`, `ItaForTokenClassification` and `ItaProcessor` with transformers' Auto classes, so
that a checkpoint loads with this code and without `trust_remote_code`.
"""

from transformers import AutoConfig, AutoModelForTokenClassification, AutoProcessor

from .captioner import Captioner
from .configuration_ita import ItaConfig, Span, TagScheme
from .crf import LinearChainCRF
from .modeling_ita import ItaForTokenClassification, ItaOutput
from .object_tagger import AttributeTagger, ObjectTagger
from .pipeline_ita import ItaPipeline
from .processing_ita import Entity, ItaDataCollator, ItaProcessor, Word, split_words
from .visual_context import VisualContext, VisualContextBuilder

AutoConfig.register(ItaConfig.model_type, ItaConfig, exist_ok=True)
AutoModelForTokenClassification.register(ItaConfig, ItaForTokenClassification, exist_ok=True)
AutoProcessor.register(ItaConfig, ItaProcessor, exist_ok=True)

__all__ = [
    "AttributeTagger",
    "Captioner",
    "Entity",
    "ItaConfig",
    "ItaDataCollator",
    "ItaForTokenClassification",
    "ItaOutput",
    "ItaPipeline",
    "ItaProcessor",
    "LinearChainCRF",
    "ObjectTagger",
    "Span",
    "TagScheme",
    "VisualContext",
    "VisualContextBuilder",
    "Word",
    "split_words",
]
