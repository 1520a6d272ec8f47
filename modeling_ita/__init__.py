"""ITA (Wang et al., 2022) and MGCMT (Liu et al., 2022): named entity recognition in posts with images.

This is the code that checkpoints on the Hub contain. Importing it registers the configuration, the model and the
processor of both with transformers' Auto classes, so that a checkpoint loads with this code and without
`trust_remote_code`.
"""

from transformers import AutoConfig, AutoModelForTokenClassification, AutoProcessor

from .captioner import Captioner
from .configuration_ita import ItaConfig
from .configuration_mgcmt import MgcmtConfig
from .context_builder import VisualContextBuilder
from .crf import LinearChainCRF
from .data_collator import ItaDataCollator, MgcmtDataCollator
from .modeling_ita import ItaForTokenClassification, ItaOutput
from .modeling_mgcmt import MgcmtForTokenClassification, MgcmtOutput
from .object_tagger import AttributeTagger, ObjectTagger
from .pipeline_ita import ItaPipeline
from .processing_ita import ItaProcessor
from .processing_mgcmt import MgcmtProcessor
from .tag_scheme import Span, TagScheme
from .visual_context import VisualContext
from .word_neighbours import Augmentation, WordNeighbours
from .wordwise_processor import Entity, Word, split_words

AutoConfig.register(ItaConfig.model_type, ItaConfig, exist_ok=True)
AutoModelForTokenClassification.register(ItaConfig, ItaForTokenClassification, exist_ok=True)
AutoProcessor.register(ItaConfig, ItaProcessor, exist_ok=True)
AutoConfig.register(MgcmtConfig.model_type, MgcmtConfig, exist_ok=True)
AutoModelForTokenClassification.register(MgcmtConfig, MgcmtForTokenClassification, exist_ok=True)
AutoProcessor.register(MgcmtConfig, MgcmtProcessor, exist_ok=True)

__all__ = [
    "AttributeTagger",
    "Augmentation",
    "Captioner",
    "Entity",
    "ItaConfig",
    "ItaDataCollator",
    "ItaForTokenClassification",
    "ItaOutput",
    "ItaPipeline",
    "ItaProcessor",
    "LinearChainCRF",
    "MgcmtConfig",
    "MgcmtDataCollator",
    "MgcmtForTokenClassification",
    "MgcmtOutput",
    "MgcmtProcessor",
    "ObjectTagger",
    "Span",
    "TagScheme",
    "VisualContext",
    "VisualContextBuilder",
    "Word",
    "WordNeighbours",
    "split_words",
]
