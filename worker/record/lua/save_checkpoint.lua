-- Saves the state of a running task, for a later attempt.
--
-- task        ns:{id}:task        hash    checkpoint_step written
-- checkpoint  ns:{id}:checkpoint  string  written
-- token       of the claim
-- step
-- state       safetensors
-- Returns 0, or -1 when another worker has claimed the task.
local task, checkpoint = unpack(KEYS)
local token, step, state = unpack(ARGV)
local held = redis.call('HMGET', task, 'token', 'status')
if held[1] ~= token or held[2] ~= 'running' then return -1 end
redis.call('SET', checkpoint, state)
redis.call('HSET', task, 'checkpoint_step', step)
return 0
