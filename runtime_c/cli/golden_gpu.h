/* golden_gpu.h: golden prompts on a GPU, whose logits are the processor's within a tolerance. */
#ifndef EDGELLM_RT_GOLDEN_GPU_H
#define EDGELLM_RT_GOLDEN_GPU_H

#include "options.h"

/* Judges the GPU, if it is what `golden` is about: --device vulkan, or a bundle that has no other device. KERNEL_FAILED
 * where it computes otherwise. Of a bundle for both it leaves or takes away the note (gpu_note.h). CANCELLED by whoever
 * interrupts it: then the note is as it was. */
ellm_status golden_gpu(const settings *s, bool *is_gpus, ellm_error *error);

/* The same for a bundle for both, without a word on standard output. GPU_MISSING where no note can be left. */
ellm_status golden_gpu_again(const char *directory, const ellm_trust *keys, ellm_error *error);

#endif
