/* board.h: what the machine is and how it is doing, as JSON objects for whoever measures it. */
#ifndef ELLM_RPC_BOARD_H
#define ELLM_RPC_BOARD_H

#include "cores.h"

/* {"agent","protocol","arch","cores","fast_cores","threads","memory_bytes","cache_bytes"}; cache_bytes: of the last
 * level, 0: unknown. `root`: where /sys and /proc lie, "" but for tests. */
void ellm_rpc_describe(const char *root, const ellm_cores *cores, int32_t n_threads, char *text, size_t n);

/* {"governors":[…],"khz":[…],"most_khz":[…],"temperature_mc":[…],"throttled":flags or null,"throttle_count":n,
 *  "wall_ns","own_ns","idle_ns"}
 * One entry per frequency policy and thermal zone; throttled: the Raspberry Pi firmware's flags (bit 0 under-voltage,
 * 1 frequency capped, 2 throttled, 3 soft temperature limit; 16 to 19 the same since the start); throttle_count: x86's.
 * The times are ellm_load's: what other programs took between two readings follows from them. */
void ellm_rpc_observe(const char *root, const ellm_cores *cores, char *text, size_t n);

#endif
