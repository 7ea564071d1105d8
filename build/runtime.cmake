# One C++ runtime for all libraries.

# Stop where the compiler links its C++ runtime into each library. An exception of one library that another one catches
# ends the process then, at the first damaged model file at the latest.
function(check_shared_runtime)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/runtime-check)
  file(WRITE ${folder}/CMakeLists.txt
    "cmake_minimum_required(VERSION 3.24)\nproject(runtime_check LANGUAGES CXX)\nadd_library(check SHARED check.cpp)\n"
    "set_target_properties(check PROPERTIES LIBRARY_OUTPUT_DIRECTORY \"${folder}\")\n")
  file(WRITE ${folder}/check.cpp
    "#include <stdexcept>\n#include <string>\nvoid fail(const std::string & why) { throw std::runtime_error(why); }\n")
  try_compile(compiled ${folder}/build ${folder} runtime_check CMAKE_FLAGS
    "-DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}" "-DCMAKE_SHARED_LINKER_FLAGS=${CMAKE_SHARED_LINKER_FLAGS}"
    "-DCMAKE_POSITION_INDEPENDENT_CODE=ON" OUTPUT_VARIABLE output)
  set(library ${folder}/${CMAKE_SHARED_LIBRARY_PREFIX}check${CMAKE_SHARED_LIBRARY_SUFFIX})
  if(NOT compiled OR NOT EXISTS ${library})
    message(FATAL_ERROR "llcuda: ${CMAKE_CXX_COMPILER} cannot make a shared library of C++:\n${output}")
  endif()
  # A library names those that it needs.
  file(STRINGS ${library} runtime REGEX "(^|/)lib(std)?c\\+\\+(_shared)?\\.(so|1\\.dylib)")
  if(NOT runtime)
    message(FATAL_ERROR "llcuda: ${CMAKE_CXX_COMPILER} links the C++ runtime statically into each library, and an "
      "exception that passes from one to another would end the process. Remove -static-libstdc++ and -static from "
      "CXXFLAGS and LDFLAGS, or unset the environment variables CC and CXX or set them to another compiler, e.g. that "
      "of 'apt install g++', and build again in a new folder.")
  endif()
endfunction()
