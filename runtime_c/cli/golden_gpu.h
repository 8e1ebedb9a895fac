/* golden_gpu.h: golden prompts on a GPU, whose logits are the processor's within a tolerance. */
#ifndef EDGELLM_RT_GOLDEN_GPU_H
#define EDGELLM_RT_GOLDEN_GPU_H

#include "options.h"

/* Judges the GPU, if it is what `golden` is about: --device vulkan, or a bundle that has no other device. KERNEL_FAILED
 * where it computes otherwise. Of a bundle for both it leaves or takes away the note (gpu_note.h). */
ellm_status golden_gpu(const settings *s, bool *is_gpus, ellm_error *error);

#endif
