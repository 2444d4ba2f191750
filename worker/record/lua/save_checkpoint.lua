-- Saves the state of a running task, for a later attempt. Replicas get it; the append-only file
-- does not, until Redis rewrites it: 200 KB each few steps are most of what would be in it. After a
-- restart of Redis an older checkpoint may be there, or none.
--
-- task        ns:{id}:task        hash    checkpoint_step written
-- checkpoint  ns:{id}:checkpoint  string  written
-- fence       of the claim
-- step
-- state       safetensors
-- Returns 0, or -1 when another worker has claimed the task.
local task, checkpoint = unpack(KEYS)
local fence, step, state = unpack(ARGV)
local held = redis.call('HMGET', task, 'fence', 'status')
if held[1] ~= fence or held[2] ~= 'running' then return -1 end
redis.set_repl(redis.REPL_REPLICA)
redis.call('SET', checkpoint, state)
redis.call('HSET', task, 'checkpoint_step', step)
return 0
