-- Keeps how far a running task has come.
--
-- KEYS[1]  ns:{id}:task        hash    checkpoint_step
-- KEYS[2]  ns:{id}:checkpoint  string  written
-- ARGV     fence, step, state
-- gives    1, or -1 when the fence is no longer ours
local held = redis.call('HMGET', KEYS[1], 'fence', 'status')
if held[1] ~= ARGV[1] or held[2] ~= 'running' then return -1 end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], 'checkpoint_step', ARGV[2])
return 1
