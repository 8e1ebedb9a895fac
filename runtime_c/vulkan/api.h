/* api.h: Vulkan's functions, loaded at run time; no library is linked. */
#ifndef ELLM_VULKAN_API_H
#define ELLM_VULKAN_API_H

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include "edgellm.h"

#ifndef VK_KHR_cooperative_matrix /* newer than the headers here */
enum {
    ELLM_VULKAN_MATRIX_FEATURES = 1000506000,
    ELLM_VULKAN_MATRIX_PROPERTIES = 1000506001,
};
typedef struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
    uint32_t sType;
    void *pNext;
    VkBool32 cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
} VkPhysicalDeviceCooperativeMatrixFeaturesKHR;
typedef struct VkCooperativeMatrixPropertiesKHR { /* as Vulkan has it: NOLINT(*Padding) */
    uint32_t sType;
    void *pNext;
    uint32_t MSize, NSize, KSize;
    uint32_t AType, BType, CType, ResultType; /* 0: float16, 1: float32 */
    VkBool32 saturatingAccumulation;
    uint32_t scope; /* 3: a subgroup */
} VkCooperativeMatrixPropertiesKHR;
typedef VkResult(VKAPI_PTR *PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(VkPhysicalDevice, uint32_t *,
                                                                                   VkCooperativeMatrixPropertiesKHR *);
#endif

#define ELLM_VULKAN_INSTANCE(X)                                                                                        \
    X(DestroyInstance)                                                                                                 \
    X(EnumeratePhysicalDevices)                                                                                        \
    X(EnumerateDeviceExtensionProperties)                                                                              \
    X(GetPhysicalDeviceProperties2)                                                                                    \
    X(GetPhysicalDeviceFeatures2)                                                                                      \
    X(GetPhysicalDeviceMemoryProperties)                                                                               \
    X(GetPhysicalDeviceQueueFamilyProperties)                                                                          \
    X(GetPhysicalDeviceExternalBufferProperties)                                                                       \
    X(CreateDevice)                                                                                                    \
    X(GetDeviceProcAddr)
#define ELLM_VULKAN_DEVICE(X)                                                                                          \
    X(DestroyDevice)                                                                                                   \
    X(GetDeviceQueue)                                                                                                  \
    X(CreateBuffer)                                                                                                    \
    X(DestroyBuffer)                                                                                                   \
    X(GetBufferMemoryRequirements)                                                                                     \
    X(AllocateMemory)                                                                                                  \
    X(FreeMemory)                                                                                                      \
    X(BindBufferMemory)                                                                                                \
    X(MapMemory)                                                                                                       \
    X(CreateShaderModule)                                                                                              \
    X(DestroyShaderModule)                                                                                             \
    X(CreateDescriptorSetLayout)                                                                                       \
    X(DestroyDescriptorSetLayout)                                                                                      \
    X(CreatePipelineLayout)                                                                                            \
    X(DestroyPipelineLayout)                                                                                           \
    X(CreatePipelineCache)                                                                                             \
    X(DestroyPipelineCache)                                                                                            \
    X(GetPipelineCacheData)                                                                                            \
    X(CreateComputePipelines)                                                                                          \
    X(DestroyPipeline)                                                                                                 \
    X(CreateDescriptorPool)                                                                                            \
    X(DestroyDescriptorPool)                                                                                           \
    X(AllocateDescriptorSets)                                                                                          \
    X(UpdateDescriptorSets)                                                                                            \
    X(CreateCommandPool)                                                                                               \
    X(DestroyCommandPool)                                                                                              \
    X(AllocateCommandBuffers)                                                                                          \
    X(BeginCommandBuffer)                                                                                              \
    X(EndCommandBuffer)                                                                                                \
    X(CmdBindPipeline)                                                                                                 \
    X(CmdBindDescriptorSets)                                                                                           \
    X(CmdPushConstants)                                                                                                \
    X(CmdDispatch)                                                                                                     \
    X(CmdPipelineBarrier)                                                                                              \
    X(CmdCopyBuffer)                                                                                                   \
    X(CmdResetQueryPool)                                                                                               \
    X(CmdWriteTimestamp)                                                                                               \
    X(CreateQueryPool)                                                                                                 \
    X(DestroyQueryPool)                                                                                                \
    X(GetQueryPoolResults)                                                                                             \
    X(QueueSubmit)                                                                                                     \
    X(DeviceWaitIdle)                                                                                                  \
    X(CreateFence)                                                                                                     \
    X(DestroyFence)                                                                                                    \
    X(WaitForFences)                                                                                                   \
    X(ResetFences)

typedef struct ellm_vulkan_api {
    void *library; /* NULL: not loaded */
    VkInstance instance;
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR GetMatrices; /* NULL: no driver has matrices */
#define ELLM_VULKAN_MEMBER(name) PFN_vk##name name;
    ELLM_VULKAN_INSTANCE(ELLM_VULKAN_MEMBER)
    ELLM_VULKAN_DEVICE(ELLM_VULKAN_MEMBER)
#undef ELLM_VULKAN_MEMBER
} ellm_vulkan_api;

/* Loads the loader and makes an instance. GPU_MISSING if there is none. */
ellm_status ellm_vulkan_load(ellm_vulkan_api *api, ellm_error *error);
/* Finds the functions of a device. */
ellm_status ellm_vulkan_load_device(ellm_vulkan_api *api, VkDevice device, ellm_error *error);
void ellm_vulkan_unload(ellm_vulkan_api *api);

/* A result that is no success as a status, with what was being done: NO_MEMORY, GPU_LOST, GPU_MISSING. */
ellm_status ellm_vulkan_failed(VkResult result, const char *doing, ellm_error *error);

#endif
