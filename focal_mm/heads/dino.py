"""mmdet's DINO, into which the published detectors load whole or not at all."""

from mmdet.models.detectors import DINO
from torch import Tensor

from ..weights.loading import CheckpointError, FittedModule, Load
from ..weights.resize import fit_sine_columns

# What mmdet builds beside the backbone, and the arguments that decide the shapes.
_PARTS = dict(
    neck='neck',
    encoder='encoder',
    decoder='decoder',
    bbox_head='bbox_head',
    query_embedding='num_queries',
    level_embed='num_feature_levels',
    memory_trans_fc='encoder',
    memory_trans_norm='encoder',
)


class FocalDINO(DINO, FittedModule):
    """DINO that fits and checks a checkpoint before its first tensor is copied.

    - OneDL's mmdet embeds the boxes of the queries in twice as many features as mmdet 3.3, detrex
      and the original code. Weights for these are spread over the features that are the same.
    - A detector of another number of classes leaves the classifiers and the label embedding as
      they are initialized, to be fine-tuned, and one line says so.
    - Any other difference, such as the number of queries, is an error in one line.

    The arguments are those of mmdet's ``DINO``.
    """

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Fit the columns of ``ref_point_head`` and leave out the tensors of other classes.

        Raises:
            CheckpointError: If the checkpoint embeds boxes in more features.
        """
        key = f'{prefix}decoder.ref_point_head.layers.0.weight'
        columns = self.state_dict()['decoder.ref_point_head.layers.0.weight'].shape[1]
        if key in state_dict and state_dict[key].shape[1] != columns:
            if state_dict[key].shape[1] > columns:
                raise CheckpointError(
                    f"{key} has {state_dict[key].shape[1]} columns, as with OneDL's mmdet, and the "
                    f'model {columns}, as with mmdet 3.3; load it in an environment with '
                    'onedl-mmdetection'
                )
            state_dict[key] = fit_sine_columns(state_dict[key], columns)

        own = self.state_dict(prefix=prefix)
        classes = [
            key
            for key in own
            if key.startswith((f'{prefix}bbox_head.cls_branches.', f'{prefix}dn_query_generator.'))
        ]
        ours, theirs = (len(d[classes[0]]) if classes[0] in d else 0 for d in (own, state_dict))
        if theirs and theirs != ours:
            state_dict.update({key: own[key] for key in classes if not own[key].is_meta})
            what = f'left as initialized: {theirs} classes in the checkpoint, {ours} in the model'
            self.changes['classifier and label embedding', what] += 1

    def check_state_dict(self, state_dict: dict[str, Tensor], prefix: str, load: Load) -> None:
        """Check the names and shapes of a file beside the backbone's.

        Raises:
            CheckpointError: If a tensor is missing or has another shape.
        """
        own = {
            key: argument
            for key in self.state_dict()
            if (argument := _PARTS.get(key.split('.')[0]))
        }
        if not load.file or not any(f'{prefix}{key}' in state_dict for key in own):
            return
        for key, value in self.state_dict().items():
            if key not in own:
                continue
            theirs = state_dict.get(f'{prefix}{key}')
            if theirs is None:
                what = 'is missing'
            elif theirs.shape != value.shape:
                what = f'is {tuple(theirs.shape)} where the model has {tuple(value.shape)}'
            else:
                continue
            raise CheckpointError(
                f'{prefix}{key} {what}; build the detector with the {own[key]} of the checkpoint'
            )
