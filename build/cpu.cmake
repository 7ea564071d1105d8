# Instruction sets for a CPU backend that is built for this machine.

# Turn on the GGML_* features that the compiler's -march=native announces.
#
# AMX stays off: virtual machines list it without permitting it, and the first tile
# instruction then ends the process. A wheel carries an AMX variant that the loader
# tries out before it uses it (llcuda/native/shim/library.cpp).
function(enable_features_of_this_machine)
  execute_process(COMMAND ${CMAKE_C_COMPILER} -march=native -dM -E -x c /dev/null
    OUTPUT_VARIABLE macros RESULT_VARIABLE code ERROR_QUIET)
  if(code)
    message(STATUS "llcuda: ${CMAKE_C_COMPILER} knows no -march=native; building a portable CPU backend")
    return()
  endif()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(GGML_CPU_ARM_ARCH native PARENT_SCOPE)
    return()
  endif()
  set(feature_SSE42 __SSE4_2__)
  set(feature_AVX __AVX__)
  set(feature_AVX2 __AVX2__)
  set(feature_AVX_VNNI __AVXVNNI__)
  set(feature_BMI2 __BMI2__)
  set(feature_FMA __FMA__)
  set(feature_F16C __F16C__)
  set(feature_AVX512 __AVX512BW__)
  set(feature_AVX512_VBMI __AVX512VBMI__)
  set(feature_AVX512_VNNI __AVX512VNNI__)
  set(feature_AVX512_BF16 __AVX512BF16__)
  set(found "")
  foreach(feature SSE42 AVX AVX2 AVX_VNNI BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16)
    if(macros MATCHES "#define ${feature_${feature}} ")
      set(GGML_${feature} ON PARENT_SCOPE)
      list(APPEND found ${feature})
    else()
      set(GGML_${feature} OFF PARENT_SCOPE)
    endif()
  endforeach()
  message(STATUS "llcuda: CPU backend for this machine: ${found}")
endfunction()
